"""The same as `heal compare`, from a clone: `python scripts/compare.py --help`."""

import sys

from heal.commands.compare import main

if __name__ == "__main__":
    main(sys.argv[1:])
