"""The same as `heal dataset`, from a clone: `python scripts/dataset.py --help`."""

import sys

from heal.commands.dataset import main

if __name__ == "__main__":
    main(sys.argv[1:])
