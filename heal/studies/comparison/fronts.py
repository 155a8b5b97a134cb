"""Arms at equal drift and at equal trait: every round of every run is a point of its way, wherever the run stopped.

Shape suffixes: B draws of prompts (the first is all of them), R base and rounds, N prompts, L levels.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heal.evaluation.signal import TRAIT
from heal.evaluation.stats import Estimate
from heal.studies.comparison.arms import Arm, Settings
from heal.studies.comparison.runs import BASE, Run

LEVELS = 24  # at which arms are matched
NEUTRAL = "neutral_kl_p95"


@dataclass(frozen=True)
class Measure:
    """What arms are held against beside the trait: `of(run, where)` at base (`base`) or after a round."""

    name: str
    label: str
    of: Callable[[Run, int | str], float]


def margin() -> Measure:
    """The coherence margin."""
    return Measure("margin", "coherence margin (1 as at base)", lambda run, where: run.margin(where))


def drift(runs: Sequence[Run]) -> Measure | None:
    """How far a student is from base, in the one way that all runs measured; None where there is none.

    That of their own answers where every run has it, else that on neutral text.
    """
    if all(run.drift(index) is not None for run in runs for index in range(run.rounds)):
        return Measure("drift", "rms KL to base on answers, nats", _own_drift)
    if all(run.has(NEUTRAL, where) for run in runs for where in (BASE, *range(run.rounds))):
        return Measure("drift", "p95 KL to base on neutral text, nats", _on_neutral_text)
    return None


def _on_neutral_text(run: Run, where: int | str) -> float:
    return _mean(run.values(NEUTRAL, where)) if run.has(NEUTRAL, where) else math.nan


def _own_drift(run: Run, where: int | str) -> float:
    found = run.drift(where) if isinstance(where, int) else 0.0 if where == BASE else None
    return math.nan if found is None else found


@dataclass(frozen=True)
class Step:
    """One round of one run (0: base): the trait's mean over base, and the other measure."""

    number: int
    shift: float
    value: float


def way(run: Run, measure: Measure) -> list[Step]:
    """Base and every finished round of a run."""
    base = _mean(run.values(TRAIT, BASE))
    places: list[int | str] = [BASE, *range(run.rounds)]
    return [
        Step(number, _mean(run.values(TRAIT, where)) - base, measure.of(run, where))
        for number, where in enumerate(places)
    ]


def stage(run: Run, name: str, measure: Measure) -> tuple[float, float]:
    """The trait's mean over base, and the measure, at a stage that was not trained; NaN where it was not measured."""
    if not run.has(TRAIT, name):
        return math.nan, math.nan
    return _mean(run.values(TRAIT, name)) - _mean(run.values(TRAIT, BASE)), measure.of(run, name)


@dataclass(frozen=True)
class Matched:
    """What an arm has more than the first arm where both have come equally far, at each level, with its interval.

    No levels where an arm never came anywhere, or the two were asked other prompts.
    """

    arm: Arm
    levels: tuple[float, ...]
    differences: tuple[Estimate, ...]


def at_equal_measure(first: Arm, other: Arm, measure: Measure, settings: Settings) -> Matched:
    """The trait of `other` less that of `first`, where the measure of each run first reaches a level."""
    return _matched(first, other, lambda run, shift_BR: (_measured(run, measure, shift_BR), shift_BR), settings)


def at_equal_trait(first: Arm, other: Arm, measure: Measure, settings: Settings) -> Matched:
    """The measure of `other` less that of `first`, where the trait of each run first reaches a level over base."""
    return _matched(first, other, lambda run, shift_BR: (shift_BR, _measured(run, measure, shift_BR)), settings)


def _matched(
    first: Arm, other: Arm, sides: Callable[[Run, NDArray], tuple[NDArray, NDArray]], settings: Settings
) -> Matched:
    """Differences at levels that every run of both arms reaches, paired by prompt and by seed where these are the same.

    Between two rounds a run's way is a straight line; only its first arrival at a level counts. The interval is over
    prompts and seeds; a draw in which a run does not arrive is left out.
    """
    if first.runs[0].prompts != other.runs[0].prompts:
        return Matched(other, (), ())
    source = np.random.default_rng(settings.seed)
    count = len(first.runs[0].prompts)
    prompts_BN = np.vstack([np.arange(count), source.integers(0, count, (settings.resamples, count))])
    ways = [[sides(run, _shifts(run, prompts_BN)) for run in arm.runs] for arm in (first, other)]
    farthest = min(float(np.nanmax(along_BR[0])) for arm in ways for along_BR, _ in arm)
    if not farthest > 0:
        return Matched(other, (), ())
    levels = np.linspace(0, farthest, LEVELS + 1)[1:]
    levels[-1] = farthest
    seeds_BS = [_seeds(source, arm, settings.resamples) for arm in (first, other)]
    if [run.keys["run.seed"] for run in first.runs] == [run.keys["run.seed"] for run in other.runs]:
        seeds_BS[1] = seeds_BS[0]
    found = []
    with warnings.catch_warnings():  # a draw in which no run arrives is NaN, and left out
        warnings.simplefilter("ignore", RuntimeWarning)
        for level in levels:
            of_first_B, of_other_B = (
                np.nanmean(
                    np.take_along_axis(np.stack([arrival(*line, level) for line in arm], 1), seeds_BS[place], 1), 1
                )
                for place, arm in enumerate(ways)
            )
            difference_B = of_other_B - of_first_B
            low, high = np.nanpercentile(difference_B[1:], (2.5, 97.5))
            found.append(Estimate(float(difference_B[0]), float(low), float(high), count))
    return Matched(other, tuple(levels.tolist()), tuple(found))


def arrival(along_BR: NDArray, value_BR: NDArray, level: float) -> NDArray:
    """`[B]` the value where a way first reaches a level, on straight lines between rounds; NaN where it never does."""
    past_BR = along_BR >= level
    after_B = past_BR.argmax(axis=1)[:, None]
    before_B = np.maximum(after_B - 1, 0)
    (x0, x1), (y0, y1) = (
        tuple(np.take_along_axis(table, place, 1)[:, 0] for place in (before_B, after_B))
        for table in (along_BR, value_BR)
    )
    part_B = np.divide(level - x0, x1 - x0, out=np.zeros_like(x0), where=x1 > x0)
    return np.where(past_BR.any(axis=1), y0 + part_B * (y1 - y0), np.nan)


def _shifts(run: Run, prompts_BN: NDArray) -> NDArray:
    """`[B, R]` the trait's mean over base, in each draw of prompts."""
    places: list[int | str] = [BASE, *range(run.rounds)]
    trait_RN = np.array([run.values(TRAIT, where) for where in places])
    with warnings.catch_warnings():  # a draw without a prompt that was scored is NaN
        warnings.simplefilter("ignore", RuntimeWarning)
        mean_RB = np.nanmean(trait_RN[:, prompts_BN], axis=2)
    return (mean_RB - mean_RB[0]).T


def _measured(run: Run, measure: Measure, shift_BR: NDArray) -> NDArray:
    """`[B, R]` the measure, which no draw of prompts changes."""
    places: list[int | str] = [BASE, *range(run.rounds)]
    return np.broadcast_to(np.array([measure.of(run, where) for where in places]), shift_BR.shape)


def _seeds(source: np.random.Generator, arm: Arm, draws: int) -> NDArray:
    """`[B, S]` which runs of an arm are drawn; all of them first."""
    count = len(arm.runs)
    return np.vstack([np.arange(count), source.integers(0, count, (draws, count))])


def _mean(values: Sequence[float]) -> float:
    with warnings.catch_warnings():  # NaN where no item was scored
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(np.nanmean(values))
