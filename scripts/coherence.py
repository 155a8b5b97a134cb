"""The same as `heal coherence`, from a clone: `python scripts/coherence.py --help`."""

import sys

from heal.commands.coherence import main

if __name__ == "__main__":
    main(sys.argv[1:])
