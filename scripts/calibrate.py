"""The same as `heal calibrate`, from a clone: `python scripts/calibrate.py --help`."""

import sys

from heal.commands.calibrate import main

if __name__ == "__main__":
    main(sys.argv[1:])
