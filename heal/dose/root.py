"""Finds the coefficient at which a noisy, rising, step-shaped statistic reaches a target. Pure mathematics."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Outcome = Literal["tolerance", "noise", "bracket", "passes", "unreachable"]
# Values of the statistic at several coefficients, measured side by side.
Statistic = Callable[[Sequence[float]], Sequence[float]]

COLD, WARM = 2.0, 1.2  # ratio of neighbouring candidates in the first pass
_GROWTH = 2.0
_LEAP = 256.0
_NARROW = 0.01
_AT = 1e-9  # in log c; a coefficient this near to the largest one counts as it
_FINE = 0.02  # in log c; candidates nearer to each other than this give little information


@dataclass(frozen=True)
class Search:
    """How a search ended.

    Attributes:
        c: the best coefficient evaluated (its statistic nearest to the target in log, up to the first crossing).
        value: the statistic at `c`.
        outcome: `tolerance` (within tolerance of the target), `noise` (both ends of the bracket are nearer to the
            target than their standard errors), `bracket` (the bracket is narrower than 1 %: the statistic jumps over
            the target there), `passes` (the search gave up), or `unreachable` (every value lies on one side of the
            target, up to the largest coefficient and between, or as far as the search went).
        evaluated: every (c, value) in order, starting with the one at 0 if it was given.
        passes: calls of the statistic.
    """

    c: float
    value: float
    outcome: Outcome
    evaluated: tuple[tuple[float, float], ...]
    passes: int


def find_coefficient(
    statistic: Statistic,
    target: float,
    tolerance: float,
    start: float = 1.0,
    ratio: float = COLD,
    candidates: int = 4,
    max_passes: int = 6,
    *,
    largest: float | None = None,
    zero: float | None = None,
    falling: bool = False,
    error: Callable[[float], float] = lambda c: 0.0,
) -> Search:
    """Brackets the target and closes in on it in (log c, log statistic), several candidates per pass.

    Near zero KL grows as c^2 and then saturates, so the curve is concave in these coordinates and
    close to a line. The first pass is centred on `start`. While the target is not bracketed, the next pass
    extends further, in leaps where the curve is steep enough to indicate how far the target is, so that no
    vector is too small or too large. Inside the bracket the candidates cluster where its chord meets the
    target, or are spread evenly when the previous pass did not halve the bracket. A value that is not finite
    counts as above the target. Where noise, or a model that loops, makes the statistic cross the target more
    than once, the first crossing observed is the one that counts: a point beyond its upper end is neither a hit
    nor the result, however near to the target it is.

    An intervention that acts even at coefficient 0 has a statistic there, `zero`. If that is already above the
    target, the statistic may still fall below it and rise again: the search goes up and takes that crossing. Where
    the statistic falls as the coefficient grows, the first crossing from above counts, in the same way. Where no
    point up to the largest coefficient crosses the target, the passes that are left look between them, finer and
    finer, for a crossing and back that the first points stepped over.
    See docs/method.md, Dose.

    Args:
        statistic: coefficients -> values; each call is expensive.
        target: the value to reach, positive.
        tolerance: accepted absolute distance from the target.
        start: centre of the first pass, positive.
        ratio: between neighbouring candidates of the first pass.
        candidates: coefficients per call.
        max_passes: calls before giving up.
        largest: upper bound of the coefficients; None: no bound.
        zero: the statistic at coefficient 0; None: it is 0 there.
        falling: look for the first crossing from above the target to below it.
        error: standard error of the statistic at a coefficient that was evaluated.
    """
    if not (target > 0 and start > 0):
        raise ValueError(f"find_coefficient: target {target} and start {start} must be positive")
    evaluated = [] if zero is None else [(0.0, zero)]
    points: list[tuple[float, float]] = []  # (log c, signed distance in log from the target), by log c
    limit = math.inf if largest is None else largest
    top = math.log(limit)
    passes, crossing = 0, math.inf  # the coefficient at the upper end of the first crossing, once one was seen

    def counted() -> list[tuple[float, float]]:
        return [(c, value) for c, value in evaluated if c <= crossing]

    def end(outcome: Outcome) -> Search:
        c, value = min(counted(), key=lambda pair: abs(_log(pair[1]) - math.log(target)))
        return Search(c, value, outcome, tuple(evaluated), passes)

    def gap(value: float) -> float:
        return (_log(value) - math.log(target)) * (-1 if falling else 1)

    def near(point: tuple[float, float]) -> bool:
        c = min(math.exp(point[0]), limit)
        return abs(dict(evaluated)[c] - target) <= error(c)

    at_zero = -math.inf if zero is None else gap(zero)
    if zero is not None and abs(zero - target) <= tolerance:
        return end("tolerance")
    if falling and at_zero >= 0:
        return end("unreachable")
    log_candidates = _around(math.log(start), math.log(ratio), candidates, top)
    width = math.inf
    for passes in range(1, max_passes + 1):
        coefficients = [min(math.exp(x), limit) for x in log_candidates]
        values = statistic(coefficients)
        evaluated += zip(coefficients, values, strict=True)
        points = sorted(points + [(x, gap(value)) for x, value in zip(log_candidates, values, strict=True)])
        gaps = [at_zero, *(g for _, g in points)]
        above = next((index for index, (one, other) in enumerate(pairwise(gaps)) if one < 0 <= other), None)
        if above is not None:
            crossing = min(math.exp(points[above][0]), limit)
        if any(abs(value - target) <= tolerance for _, value in counted()):
            return end("tolerance")
        if above is None and points[-1][0] > top - _AT:
            log_candidates = _between([(min(math.exp(x), limit), abs(g)) for x, g in points], candidates)
            continue
        if above is None or above == 0:
            log_candidates = _further(points, above is None, candidates, top)
            continue
        low, high = points[above - 1], points[above]
        if (near(low) and near(high)) or (passes > 1 and (near(low) or near(high))):
            return end("noise")
        before, width = width, high[0] - low[0]
        if width < math.log1p(_NARROW):
            return end("bracket")
        log_candidates = _inside(low, high, candidates, gather=width <= before / 2)
    never = all(g < 0 for _, g in points) or (at_zero >= 0 and all(g >= 0 for _, g in points))
    return end("unreachable" if never else "passes")


def _log(value: float) -> float:
    if math.isnan(value) or value == math.inf:
        return math.inf
    return math.log(value) if value > 0 else -math.inf


def _around(x: float, step: float, count: int, top: float) -> list[float]:
    """Candidates around `x`, moved down where the highest of them would exceed `top`."""
    middle = min(x, top - step * (count - 1) / 2)
    return [middle + (index - (count - 1) / 2) * step for index in range(count)]


def _further(points: list[tuple[float, float]], up: bool, count: int, top: float) -> list[float]:
    """Candidates beyond the last point, up to `top`: at half to twice the estimated distance of the target."""
    (x0, g0), (x1, g1) = (points[-2:] if up else points[1::-1]) if len(points) > 1 else (points[0], points[0])
    stride = _stride(g0, g1, abs(x1 - x0))
    shares = [1.0] if count == 1 else [0.5 + 1.5 * index / (count - 1) for index in range(count)]
    if up and x1 + shares[-1] * stride > top:
        return [x1 + (top - x1) * (index + 1) / count for index in range(count)]
    return [x1 + (share if up else -share) * stride for share in shares]


def _between(points: list[tuple[float, float]], count: int) -> list[float]:
    """Candidates (in log c) halfway between neighbours of 0 and (c, distance from the target), by c.

    Half of them lie beside the point that is nearest to the target, the others in the widest gaps.
    """
    gaps = list(pairwise([0.0, *(c for c, _ in points)]))
    nearest = min(points, key=lambda point: point[1])[0]
    widest = sorted(gaps, key=lambda gap: gap[0] - gap[1])
    beside = [gap for gap in widest if nearest in gap][: count // 2]
    chosen = beside + [gap for gap in widest if gap not in beside][: count - len(beside)]
    return sorted(math.log((low + high) / 2) for low, high in chosen)


def _stride(g0: float, g1: float, step: float) -> float:
    """The distance (in log c) to continue after `step` changed the gap from `g0` to `g1`, still on the same side.

    The line through both points estimates how far the target is, where it is steep enough to be trusted (near
    zero the statistic grows as c^2); otherwise the coefficient is doubled. A statistic of exactly 0 (a vector lost
    in rounding) is far below any target.
    """
    slope = abs(g1 - g0) / step if step else 0.0
    if g1 == -math.inf:
        return math.log(_LEAP)
    if slope >= 1 and abs(g1) < abs(g0) < math.inf:
        return min(max(abs(g1) / slope, 2 * _FINE), math.log(_LEAP))
    return math.log(_GROWTH)


def _inside(low: tuple[float, float], high: tuple[float, float], count: int, gather: bool) -> list[float]:
    """Candidates inside a bracket, away from its ends: around the zero of its chord, or evenly spread."""
    width = high[0] - low[0]
    even = width / (count + 1)
    step = min(even, max(0.45 * even, _FINE)) if gather else even
    reach = step * (count - 1) / 2
    margin = min(even, _FINE) / 2
    centre = _secant(low, high) if gather else (low[0] + high[0]) / 2
    centre = min(max(centre, low[0] + reach + margin), high[0] - reach - margin)
    return [centre - reach + index * step for index in range(count)]


def _secant(low: tuple[float, float], high: tuple[float, float]) -> float:
    """Where the chord crosses zero; the midpoint where no finite chord exists."""
    (x0, g0), (x1, g1) = low, high
    if not (math.isfinite(g0) and math.isfinite(g1)) or g1 <= g0:
        return (x0 + x1) / 2
    return x0 - g0 * (x1 - x0) / (g1 - g0)
