"""The same as `heal sweep`, from a clone: `python scripts/sweep.py --help`."""

import sys

from heal.commands.sweep import main

if __name__ == "__main__":
    main(sys.argv[1:])
