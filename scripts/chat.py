"""The same as `heal chat`, from a clone: `python scripts/chat.py --help`."""

import sys

from heal.commands.chat import main

if __name__ == "__main__":
    main(sys.argv[1:])
