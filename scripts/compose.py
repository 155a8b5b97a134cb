"""The same as `heal compose`, from a clone: `python scripts/compose.py --help`."""

import sys

from heal.commands.compose import main

if __name__ == "__main__":
    main(sys.argv[1:])
