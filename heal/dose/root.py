"""Finds the coefficient at which a noisy, rising, step-shaped statistic reaches a target. Pure maths."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["tolerance", "bracket", "evaluations", "unreachable"]

_GROWTH = 2.0
_LEAP = 256.0
_NARROW = 0.01


@dataclass(frozen=True)
class Search:
    """How a search ended.

    Attributes:
        c: the best coefficient that was evaluated (nearest to the target in log).
        value: the statistic there.
        outcome: `tolerance` (within tolerance of the target), `bracket` (the bracket is narrower than
            1 %: the statistic jumps over the target there), `evaluations` (gave up), or `unreachable`
            (never reached the target while the coefficient grew).
        evaluated: every (c, value) in order.
    """

    c: float
    value: float
    outcome: Outcome
    evaluated: tuple[tuple[float, float], ...]


def find_coefficient(
    statistic: Callable[[float], float],
    target: float,
    tolerance: float,
    start: float = 1.0,
    max_evaluations: int = 12,
) -> Search:
    """Regula falsi with the Illinois rule in (log c, log statistic); bisection where a step leaves the bracket.

    Near zero KL grows as c^2 and then saturates, so the curve is concave in these coordinates and
    close to a line. The bracket grows from `start` by doubling (halving), or in leaps where the curve is
    still so steep that it says how far the target is, so no vector is too small or too large. A value that
    is not finite counts as above the target.

    Args:
        statistic: coefficient -> statistic; each call is expensive.
        target: the value to reach, positive.
        tolerance: accepted absolute distance from the target.
        start: first coefficient, positive.
        max_evaluations: calls before giving up.
    """
    if not (target > 0 and start > 0):
        raise ValueError(f"find_coefficient: target {target} and start {start} must be positive")
    evaluated: list[tuple[float, float]] = []

    def gap(x: float) -> float:
        """Signed distance in log of the statistic at log-coefficient `x`."""
        value = statistic(math.exp(x))
        evaluated.append((math.exp(x), value))
        return _log(value) - math.log(target)

    def reached() -> bool:
        return abs(evaluated[-1][1] - target) <= tolerance

    def end(outcome: Outcome) -> Search:
        c, value = min(evaluated, key=lambda pair: abs(_log(pair[1]) - math.log(target)))
        return Search(c, value, outcome, tuple(evaluated))

    x = math.log(start)
    g = gap(x)
    if reached():
        return end("tolerance")
    direction = 1 if g < 0 else -1
    step = math.log(_GROWTH)
    while True:
        if len(evaluated) >= max_evaluations:
            return end("unreachable" if g < 0 else "evaluations")
        x_next = x + direction * step
        g_next = gap(x_next)
        if reached():
            return end("tolerance")
        if (g_next < 0) != (g < 0):
            break
        step = _stride(g, g_next, step)
        x, g = x_next, g_next
    low, high = sorted([(x, g), (x_next, g_next)])
    side = 0  # which end was replaced last: the Illinois rule halves the other one's gap
    while len(evaluated) < max_evaluations:
        if high[0] - low[0] < math.log1p(_NARROW):
            return end("bracket")
        x = _secant(low, high)
        g = gap(x)
        if reached():
            return end("tolerance")
        if g < 0:
            high = (high[0], high[1] / 2) if side < 0 else high
            low, side = (x, g), -1
        else:
            low = (low[0], low[1] / 2) if side > 0 else low
            high, side = (x, g), 1
    return end("evaluations")


def _log(value: float) -> float:
    if math.isnan(value) or value == math.inf:
        return math.inf
    return math.log(value) if value > 0 else -math.inf


def _stride(g0: float, g1: float, step: float) -> float:
    """How much further (in log c) to look after `step` took the gap from `g0` to `g1`, still on the same side.

    A doubling; but near zero the statistic goes as c^2, and there the line through both points says how
    far the target is. A statistic of exactly 0 (a vector lost in rounding) is far below any target.
    """
    slope = abs(g1 - g0) / step
    reach = math.inf if g1 == -math.inf else abs(g1) / slope if slope >= 1 and abs(g1) < abs(g0) else 0.0
    return min(max(reach, math.log(_GROWTH)), math.log(_LEAP))


def _secant(low: tuple[float, float], high: tuple[float, float]) -> float:
    """Where the chord crosses zero, kept off the bracket's ends; the middle when it has no finite chord."""
    (x0, g0), (x1, g1) = low, high
    middle = (x0 + x1) / 2
    if not (math.isfinite(g0) and math.isfinite(g1)) or g0 >= 0 or g1 <= 0:
        return middle
    x = x0 - g0 * (x1 - x0) / (g1 - g0)
    margin = 0.02 * (x1 - x0)
    return x if x0 + margin < x < x1 - margin else middle
