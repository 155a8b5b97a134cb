"""The same as `heal trait`, from a clone: `python scripts/trait.py --help`."""

import sys

from heal.commands.trait import main

if __name__ == "__main__":
    main(sys.argv[1:])
