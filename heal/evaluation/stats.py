"""Bootstrap intervals over items, and paired differences. Pure functions of numbers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Statistic = Literal["mean", "median"]

_LEVELS = (2.5, 97.5)


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

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def estimate(values: Sequence[float], statistic: Statistic, resamples: int, seed: int) -> Estimate:
    """The statistic of the items that are not NaN, with its interval."""
    return _bootstrap(_finite_rows(np.asarray(values, dtype=float)[:, None]), statistic, resamples, seed)


def paired_difference(
    values: Sequence[float], base: Sequence[float], statistic: Statistic, resamples: int, seed: int
) -> Estimate:
    """`statistic(values) - statistic(base)`, the same items drawn on both sides; pairs with a NaN are left out.

    Raises:
        ValueError: the two are not of one length.
    """
    if len(values) != len(base):
        raise ValueError(f"paired_difference: {len(values)} items against {len(base)}")
    return _bootstrap(_finite_rows(np.column_stack([values, base]).astype(float)), statistic, resamples, seed)


def _finite_rows(table: NDArray) -> NDArray:
    return table[~np.isnan(table).any(axis=1)]


def _bootstrap(table: NDArray, statistic: Statistic, resamples: int, seed: int) -> Estimate:
    """Column 0's statistic, less column 1's when there is one, over resampled rows."""
    n = len(table)
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    reduce = np.mean if statistic == "mean" else np.median

    def contrast(columns: NDArray) -> NDArray:
        sides = reduce(columns, axis=-2)
        return sides[..., 0] - (sides[..., 1] if sides.shape[-1] == 2 else 0.0)

    drawn = np.random.default_rng(seed).integers(0, n, size=(resamples, n))
    low, high = np.percentile(contrast(table[drawn]), _LEVELS)
    return Estimate(float(contrast(table)), float(low), float(high), n)
