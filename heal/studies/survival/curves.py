"""Kaplan-Meier survival of rollouts over tokens, with log-log bands (scipy).

See docs/method.md, Interventions compared. Times are tokens. A rollout that dies at a token counts as at risk there;
so does one that is censored there.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import CensoredData, ecdf

from heal.studies.survival.rollouts import Trajectory

_HALF = 0.5 + 1e-9  # survival is a product of fractions: one half may be rounded upwards


@dataclass(frozen=True)
class Curve:
    """Survival of the rollouts of one alpha.

    Attributes:
        alpha: multiple of the dose.
        n: rollouts.
        deaths: number of these that died.
        times: tokens at which one died or was censored, preceded by 0.
        survival: fraction alive after each time.
        low, high: its 95 % band; NaN where survival is 1 or 0, for which the formula gives no variance.
        censored: tokens at which rollouts were censored, one entry each.
        median: half-life, tokens: the first time at which survival is at most one half; inf if it never is.
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
        """Fraction alive after `time` tokens; after the last time, the last value."""
        return next((s for t, s in zip(self.times[::-1], self.survival[::-1], strict=True) if t <= time), 1.0)


def survival(trajectories: Sequence[Trajectory]) -> Curve:
    """The Kaplan-Meier estimate of one alpha's rollouts.

    Args:
        trajectories: all of one alpha.

    Raises:
        ValueError: there are none, or they have several alphas.
    """
    alphas = {trajectory.alpha for trajectory in trajectories}
    if len(alphas) != 1:
        raise ValueError(f"survival: requires the rollouts of one alpha, not of {len(alphas)}")
    times = [trajectory.time for trajectory in trajectories]
    censored = [trajectory.death is None for trajectory in trajectories]
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
