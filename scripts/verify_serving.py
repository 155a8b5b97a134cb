"""The same as `heal verify-serving`, from a clone: `python scripts/verify_serving.py --help`."""

import sys

from heal.commands.verify_serving import main

if __name__ == "__main__":
    main(sys.argv[1:])
