"""The same as `heal check`, from a clone: `python scripts/check.py --help`."""

import sys

from heal.commands.check import main

if __name__ == "__main__":
    main(sys.argv[1:])
