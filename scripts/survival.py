"""The same as `heal survival`, from a clone: `python scripts/survival.py --help`."""

import sys

from heal.commands.survival import main

if __name__ == "__main__":
    main(sys.argv[1:])
