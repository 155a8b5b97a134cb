"""The same as `heal bench`, from a clone: `python scripts/bench.py --help`."""

import sys

from heal.commands.bench import main

if __name__ == "__main__":
    main(sys.argv[1:])
