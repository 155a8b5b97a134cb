"""The same as `heal report`, from a clone: `python scripts/report.py --help`."""

import sys

from heal.commands.report import main

if __name__ == "__main__":
    main(sys.argv[1:])
