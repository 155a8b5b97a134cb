"""Kaplan-Meier survival of rollouts over tokens, with log-log bands (scipy). SPEC section 4.

Times are tokens. A rollout that dies at a token counts as at risk there; so does one that is censored there.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import CensoredData, ecdf

from heal.studies.survival.rollouts import Trajectory

_HALF = 0.5 + 1e-9  # survival is a product of fractions: a half may come out a last bit above


@dataclass(frozen=True)
class Curve:
    """Survival of the rollouts of one alpha.

    Attributes:
        alpha: multiple of the dose.
        n: rollouts.
        deaths: how many of them died.
        times: tokens at which one died or was censored, 0 in front.
        survival: share alive after each time.
        low, high: its 95 % band; NaN where survival is 1 or 0, of which the formula gives no variance.
        censored: tokens at which rollouts were censored, one entry each.
        median: half-life, tokens: the first time at which survival is at most a half; inf where it never is.
    """

    alpha: float
    n: int
    deaths: int
    times: tuple[float, ...]
    survival: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    censored: tuple[int, ...]
    median: float

    def at(self, time: float) -> float:
        """Share alive after `time` tokens; after the last time, what it was there."""
        return next((s for t, s in zip(self.times[::-1], self.survival[::-1], strict=True) if t <= time), 1.0)


def survival(trajectories: Sequence[Trajectory]) -> Curve:
    """The Kaplan-Meier estimate of one alpha's rollouts.

    Args:
        trajectories: all of one alpha.

    Raises:
        ValueError: there are none, or they are of several alphas.
    """
    alphas = {each.alpha for each in trajectories}
    if len(alphas) != 1:
        raise ValueError(f"survival: the rollouts of one alpha are needed, not of {len(alphas)}")
    times = [each.time for each in trajectories]
    censored = [each.death is None for each in trajectories]
    estimate = ecdf(CensoredData.right_censored(times, censored)).sf
    with warnings.catch_warnings():
        # The band has no value where survival is 1 or 0; it is NaN there, as `Curve` says.
        warnings.filterwarnings("ignore", message="The confidence interval is undefined", category=RuntimeWarning)
        band = estimate.confidence_interval(confidence_level=0.95, method="log-log")
    columns = [estimate.quantiles, estimate.probabilities, band.low.probabilities, band.high.probabilities]
    if columns[0][0] > 0:
        columns = [np.insert(column, 0, start) for column, start in zip(columns, (0, 1, np.nan, np.nan), strict=True)]
    time_N, survival_N, low_N, high_N = (tuple(float(number) for number in column) for column in columns)
    median = next((t for t, s in zip(time_N, survival_N, strict=True) if s <= _HALF), math.inf)
    return Curve(
        alphas.pop(), len(times), len(times) - sum(censored), time_N, survival_N, low_N, high_N,
        tuple(sorted(t for t, c in zip(times, censored, strict=True) if c)), median,
    )  # fmt: skip
