"""The same as `heal train`, for launchers that start a file: `accelerate launch heal/train.py recipe=kl_rev_rmse`."""

import sys
from pathlib import Path

# Python puts the folder of a script that it starts on the path. Here that is heal/, whose modules would hide packages
# of the same name; its parent makes heal itself importable from a clone that is not installed.
HERE = Path(__file__).resolve().parent
if sys.path[0] == str(HERE):
    sys.path[0] = str(HERE.parent)

from heal.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
