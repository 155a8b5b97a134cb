"""`python -m heal.studies.bench OUT RECIPE TRAIT`: one of the processes of `heal bench processes`."""

import sys
from collections.abc import Sequence

from heal.environment import quiet_libraries
from heal.guard import command


def main(words: Sequence[str]) -> None:
    """`measure`, whose libraries are told to be quiet before they are there."""
    quiet_libraries()
    from heal.studies.bench.processes import measure

    measure(words)


if __name__ == "__main__":
    command(sys.argv[1:], str, main, several=True)
