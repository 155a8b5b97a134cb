"""Errors that a user can act on."""

from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what the user gave: shown as one line, exit status 2, never a traceback."""


class RoundError(Exception):
    """A round that cannot go on (starved of completions, not finite): shown as one line, exit 1.

    Everything that was finished before it stays on disk.
    """


def nearest(name: str, valid: list[str]) -> str:
    """`; did you mean 'x'?` for the valid name nearest to `name`, or the whole list if none is near."""
    close = get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid: {', '.join(sorted(valid))}"
