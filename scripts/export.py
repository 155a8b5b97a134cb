"""The same as `heal export`, from a clone: `python scripts/export.py --help`."""

import sys

from heal.commands.export import main

if __name__ == "__main__":
    main(sys.argv[1:])
