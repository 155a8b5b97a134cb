"""The same as `heal weight-difference`, from a clone: `python scripts/weight_difference.py --help`."""

import sys

from heal.commands.weight_difference import main

if __name__ == "__main__":
    main(sys.argv[1:])
