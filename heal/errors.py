"""Errors that a user can act on."""

from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what the user gave: shown as one line, exit status 2, never a traceback."""


class RoundError(Exception):
    """A round that cannot go on (starved of completions, not finite): shown as one line, exit 1.

    Everything that was finished before it stays on disk.

    Attributes:
        again: whether the same command may come further; False where it would end in the same way.
    """

    def __init__(self, text: str, again: bool = True):
        super().__init__(text)
        self.again = again


def nearest(name: str, valid: list[str]) -> str:
    """`; did you mean 'x'?` for the valid name nearest to `name`, or the whole list if none is near."""
    close = get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid: {', '.join(sorted(valid))}"
