"""The activation methods by the name that `steer.method` calls them: one file each, which exports `METHOD`.

A docstring's first line is what `--help` says of a method.
"""

from heal import choices
from heal.errors import UserError, nearest
from heal.steering.method import Method

_FIRST = "mean_diff"  # the default, which the others are held against; they follow in alphabetical order

_BY_NAME: dict[str, Method] = choices.load_all(__name__, "METHOD")
METHODS: dict[str, Method] = {_FIRST: _BY_NAME[_FIRST]} | _BY_NAME
# Those that any model takes at any multiple of a dose: the coefficient is a size, and no weight serves as a basis.
ORDINARY = tuple(name for name, how in METHODS.items() if how.basis == "none" and how.neutral == 0 and not how.falling)


def additive() -> tuple[str, ...]:
    """Those that add the same `c v` at every position of a block's output, so that the shifts of two of them add up."""
    return tuple(name for name, how in METHODS.items() if how.apply is METHODS[_FIRST].apply and how.site == "block")


def method_named(name: str) -> Method:
    """The method in the file of that name; UserError when there is none, naming the nearest."""
    if name not in METHODS:
        raise UserError(f"'{name}': no such steering method{nearest(name, list(METHODS))}")
    return METHODS[name]
