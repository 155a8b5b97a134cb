"""The same as `heal push`, from a clone: `python scripts/push.py --help`."""

import sys

from heal.commands.push import main

if __name__ == "__main__":
    main(sys.argv[1:])
