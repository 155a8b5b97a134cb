"""The same as `heal eval-harness`, from a clone: `python scripts/eval_harness.py --help`."""

import sys

from heal.commands.eval_harness import main

if __name__ == "__main__":
    main(sys.argv[1:])
