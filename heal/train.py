"""Reads a recipe and runs the loop: `accelerate launch heal/train.py recipe=kl_rev_rmse trait=love`."""

import sys
from pathlib import Path

# Run as a script, Python puts heal/ on the path, where our modules would hide packages of the same name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from heal.app import main  # noqa: E402

if __name__ == "__main__":
    main(sys.argv[1:])
