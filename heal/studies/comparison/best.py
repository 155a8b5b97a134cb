"""Each arm at its best rounds, however many rounds its runs went, and what tells it from the first arm there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from heal.evaluation.choice import Choice, best_round
from heal.evaluation.signal import TRAIT
from heal.evaluation.stats import Estimate, holm, over_seeds, sign_flip_p
from heal.studies.comparison.arms import Arm, Settings
from heal.studies.comparison.fronts import Measure, drift, margin
from heal.studies.comparison.runs import BASE, Run


@dataclass(frozen=True)
class BestLine:
    """One trained arm.

    Attributes:
        rounds: each run's best round, from 1; None where none holds.
        shift: the trait over base on prompts that did not choose the round (heal/evaluation/choice.py), over the runs
            that have one; None where none has.
        margin, drift: the means over these runs of coherence margin and of drift there; drift is None where the runs
            did not measure it in one way.
        over_first: that arm's trait less the first arm's, each at its best rounds, paired by prompt and, where the arms
            have the same seeds, by seed; None for the first arm, and where either has no such round or other prompts.
        p: of that difference, Holm-adjusted.
    """

    arm: Arm
    rounds: tuple[int | None, ...]
    shift: Estimate | None
    margin: float | None
    drift: float | None
    over_first: Estimate | None = None
    p: float | None = None


def best_lines(arms: Sequence[Arm], settings: Settings) -> list[BestLine]:
    """A line for each trained arm, in their order."""
    trained = [arm for arm in arms if arm.stage is None]
    moved = drift([run for arm in trained for run in arm.runs])
    chosen = [[(run, choice_of(run, settings)) for run in arm.runs] for arm in trained]
    found = [_scores(pairs) for pairs in chosen]
    lines = []
    for arm, pairs, scores in zip(trained, chosen, found, strict=True):
        same = arm is not trained[0] and scores and found[0] and arm.runs[0].prompts == trained[0].runs[0].prompts
        held = [(run, choice.index) for run, choice in pairs if choice is not None]
        lines.append(
            BestLine(
                arm=arm,
                rounds=tuple(None if choice is None else choice.index + 1 for _, choice in pairs),
                shift=_over_base(held, scores, settings),
                margin=_mean_of(margin(), held),
                drift=None if moved is None else _mean_of(moved, held),
                over_first=_difference(scores, found[0], settings) if same else None,
                p=_p_value(scores, found[0], settings) if same else None,
            )
        )
    adjusted = iter(holm([line.p for line in lines if line.p is not None]))
    return [line if line.p is None else replace(line, p=next(adjusted)) for line in lines]


def choice_of(run: Run, settings: Settings) -> Choice | None:
    """The best round of all that the run finished; None where none holds."""
    trait = [run.values(TRAIT, index) for index in range(run.rounds)]
    return best_round(run.verdicts, trait, run.values(TRAIT, BASE), None, settings.resamples, settings.seed)


# The trait's scores by seed, at each run's best round on the prompts that did not choose it.
_Scores = dict[int, tuple[float, ...]]


def _scores(pairs: Sequence[tuple[Run, Choice | None]]) -> _Scores:
    return {run.keys["run.seed"]: choice.scores for run, choice in pairs if choice is not None}


def _over_base(held: Sequence[tuple[Run, int]], scores: _Scores, settings: Settings) -> Estimate | None:
    if not held:
        return None
    base = [run.values(TRAIT, BASE) for run, _ in held]
    return over_seeds(list(scores.values()), base, "mean", settings.resamples, settings.seed)


def _difference(scores: _Scores, first: _Scores, settings: Settings) -> Estimate:
    """Seed by seed where both have the same ones, else of their means over seeds."""
    if scores.keys() == first.keys():
        sides = [[side[seed] for seed in first] for side in (scores, first)]
    else:
        sides = [[_mean(side)] for side in (scores, first)]
    return over_seeds(sides[0], sides[1], "mean", settings.resamples, settings.seed)


def _p_value(scores: _Scores, first: _Scores, settings: Settings) -> float:
    return sign_flip_p(np.subtract(_mean(scores), _mean(first)).tolist(), settings.resamples, settings.seed)


def _mean(scores: _Scores) -> tuple[float, ...]:
    """Of each prompt over the seeds."""
    return tuple(np.nanmean(list(scores.values()), axis=0).tolist())


def _mean_of(measure: Measure, held: Sequence[tuple[Run, int]]) -> float | None:
    return float(np.mean([measure.of(run, index) for run, index in held])) if held else None
