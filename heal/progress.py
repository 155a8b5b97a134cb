"""How far a piece of work is, told to whoever shows it."""

from typing import Protocol


class Progress(Protocol):
    """Called with (done, total) as work goes on."""

    def __call__(self, done: int, total: int) -> None: ...


def silent(done: int, total: int) -> None:
    """Shows nothing."""
