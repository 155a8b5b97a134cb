"""Bootstrap intervals over items and seeds, paired differences and their tests. Pure functions of numbers.

docs/method.md, Statistics.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heal.evaluation.signal import Statistic

LEVEL = 0.95


def _log_mean(values: NDArray, axis: int) -> NDArray:
    with np.errstate(divide="ignore"):
        logarithm: NDArray = np.log(np.nanmean(values, axis=axis))
    return logarithm


_REDUCE: dict[str, Callable[..., Any]] = {"mean": np.nanmean, "median": np.nanmedian, "log_mean": _log_mean}


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % percentile bootstrap interval over `n` items (NaN when n = 0)."""

    value: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero; False when it is NaN."""
        return self.low > 0 or self.high < 0

    def __format__(self, spec: str) -> str:
        """Value and interval, each number as `spec` says: `0.210 [0.164, 0.249]` for `.3f`."""
        return "{0:{3}} [{1:{3}}, {2:{3}}]".format(self.value, self.low, self.high, spec) if spec else str(self)


def point(values: Sequence[float], statistic: Statistic) -> float:
    """The statistic of the items that are not NaN; NaN without any."""
    numbers = np.asarray(values, dtype=float)
    numbers = numbers[~np.isnan(numbers)]
    return float(_REDUCE[statistic](numbers, axis=0)) if len(numbers) else float("nan")


def estimate(
    values: Sequence[float], statistic: Statistic, resamples: int, seed: int, level: float = LEVEL
) -> Estimate:
    """The statistic of the items that are not NaN, with its interval."""
    return _bootstrap(_finite_rows(np.asarray(values, dtype=float)[:, None]), statistic, resamples, seed, level)


def paired_difference(
    values: Sequence[float],
    base: Sequence[float],
    statistic: Statistic,
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> Estimate:
    """`statistic(values) - statistic(base)`, the same items drawn on both sides; pairs with a NaN are left out.

    Raises:
        ValueError: the two are not of one length.
    """
    if len(values) != len(base):
        raise ValueError(f"paired_difference: {len(values)} items against {len(base)}")
    return _bootstrap(_finite_rows(np.column_stack([values, base]).astype(float)), statistic, resamples, seed, level)


def over_seeds(
    values: Sequence[Sequence[float]],
    base: Sequence[Sequence[float]] | None,
    statistic: Statistic,
    resamples: int,
    seed: int,
) -> Estimate:
    """The statistic of each seed's items, less that of `base` if given, averaged over seeds.

    The interval is that of a bootstrap that draws seeds and, for all of them alike, items; with one seed
    it speaks of items alone. `n` counts the items that have a number in some seed.

    Args:
        values: one row a seed, the same items in the same order in every row; NaN where not scored.
        base: the same shape.
        statistic: over the items of a seed.
        resamples: of the bootstrap.
        seed: makes the interval repeatable.

    Raises:
        ValueError: rows of different lengths.
    """
    sides = [np.asarray(side, dtype=float) for side in (values, base) if side is not None]
    if any(side.ndim != 2 or side.shape != sides[0].shape for side in sides):
        raise ValueError(f"over_seeds: not tables of one shape: {[side.shape for side in sides]}")
    missing = np.any([np.isnan(side) for side in sides], axis=0)
    sides = [np.where(missing, np.nan, side)[:, ~missing.all(axis=0)] for side in sides]
    seeds, items = sides[0].shape
    if items == 0 or seeds == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    reduce = _REDUCE[statistic]

    def contrast(rows_RS: NDArray, columns_RN: NDArray) -> NDArray:
        drawn = [side[rows_RS[:, :, None], columns_RN[:, None, :]] for side in sides]
        reduced = [reduce(side, axis=2) for side in drawn]
        return np.nanmean(reduced[0] - (reduced[1] if len(reduced) == 2 else 0.0), axis=1)

    source = np.random.default_rng(seed)
    with warnings.catch_warnings():  # a draw of items that some seed could not score is NaN there, and left out
        warnings.simplefilter("ignore", RuntimeWarning)
        value = contrast(np.arange(seeds)[None], np.arange(items)[None])[0]
        drawn_R = contrast(
            source.integers(0, seeds, size=(resamples, seeds)), source.integers(0, items, size=(resamples, items))
        )
        low, high = np.nanpercentile(drawn_R, _ends(LEVEL))
    return Estimate(float(value), float(low), float(high), items)


def sign_flip_p(differences: Sequence[float], resamples: int, seed: int) -> float:
    """Two-sided p that paired differences have mean 0: the fraction of random sign flips whose mean is as far out.

    NaNs are left out; 1.0 when nothing is left.
    """
    values = np.asarray(differences, dtype=float)
    values = values[~np.isnan(values)]
    if not len(values):
        return 1.0
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(resamples, len(values)))
    flipped = np.abs((signs * values).mean(axis=1))
    return float((1 + np.sum(flipped >= abs(values.mean()) - 1e-12)) / (1 + resamples))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: the family-wise error stays below any of them that is called."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def informedness(chosen: Sequence[Hashable], labels: Sequence[Hashable]) -> tuple[float, ...]:
    """One number an item whose mean is the macro average over the classes of (TPR - FPR); 0 is chance.

    Args:
        chosen: class chosen for each item.
        labels: its true class; classes without an item are left out of the average. With fewer than two classes
            there is no false-alarm rate, and every number is NaN.
    """
    total, of = len(labels), Counter(labels)
    if len(of) < 2:
        return (float("nan"),) * total
    values = []
    for choice, label in zip(chosen, labels, strict=True):
        hit = 1 / of[label] if choice == label else 0.0
        false_alarm = 1 / (total - of[choice]) if choice != label and choice in of else 0.0
        values.append(total / len(of) * (hit - false_alarm))
    return tuple(values)


def _finite_rows(table: NDArray) -> NDArray:
    return table[~np.isnan(table).any(axis=1)]


def _ends(level: float) -> tuple[float, float]:
    """The percentiles at which an interval of this level ends."""
    outside = round(50 * (1 - level), 9)
    return outside, 100 - outside


def _bootstrap(table: NDArray, statistic: Statistic, resamples: int, seed: int, level: float = LEVEL) -> Estimate:
    """Column 0's statistic, less column 1's when there is one, over resampled rows."""
    n = len(table)
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    reduce = _REDUCE[statistic]

    def contrast(columns: NDArray) -> NDArray:
        sides = reduce(columns, axis=-2)
        return sides[..., 0] - (sides[..., 1] if sides.shape[-1] == 2 else 0.0)

    drawn = np.random.default_rng(seed).integers(0, n, size=(resamples, n))
    low, high = np.percentile(contrast(table[drawn]), _ends(level))
    return Estimate(float(contrast(table)), float(low), float(high), n)
