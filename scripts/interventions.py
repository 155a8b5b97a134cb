"""The same as `heal interventions`, from a clone: `python scripts/interventions.py --help`."""

import sys

from heal.commands.interventions import main

if __name__ == "__main__":
    main(sys.argv[1:])
