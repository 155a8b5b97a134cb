"""Runs of the same kind as one arm: what its rounds came to, over seeds and items."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heal.errors import UserError
from heal.evaluation.choice import BROKEN
from heal.evaluation.evaluate import StageResult
from heal.evaluation.stats import Estimate, Statistic, holm, over_seeds, sign_flip_p
from heal.recipe import flatten, to_mapping
from heal.runfolder import RunFolder, read_json

TRAIT, MASS, TAIL = "persona_log_ratio", "p_ans_any", "tail_perplexity"
SATURATED = 0.9  # of the largest shift of the trait


@dataclass(frozen=True)
class Run:
    """One run's baseline and healed rounds.

    Attributes:
        keys: the resolved recipe by dotted key, `recipe` and `trait` as bare names.
        base: the baseline.
        healed: the healed stage of each finished round.
        verdicts: each round's verdict.
    """

    path: Path
    keys: dict[str, Any]
    base: StageResult
    healed: tuple[StageResult, ...]
    verdicts: tuple[str, ...]


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing that they are grouped by, one a seed."""

    name: str
    runs: tuple[Run, ...]
    rounds: int

    def signal(self, name: str, round_index: int | None) -> list[list[float]]:
        """A signal's items of every run after a round; of the baseline where it is None."""
        stages = [run.base if round_index is None else run.healed[round_index] for run in self.runs]
        return [list(stage.signal(name).values) for stage in stages]

    def estimate(self, name: str, round_index: int | None, settings: "Settings", shift: bool = False) -> Estimate:
        """A signal after a round over seeds and items, or its paired shift from base."""
        statistic = statistic_of(self.runs[0].base, name)
        base = self.signal(name, None) if shift else None
        return over_seeds(self.signal(name, round_index), base, statistic, settings.resamples, settings.seed)


@dataclass(frozen=True)
class Settings:
    """Of the intervals."""

    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Line:
    """One arm's row of the table, after its last round.

    Attributes:
        trait, shift: persona log-ratio, and its paired difference to base, nats per token.
        mass, tail: the coherence signals p_ans_any and tail perplexity (median over answers).
        coh_cost: `|d mass| / |d trait|`; None where the shift's interval includes 0.
        saturation: rounds until 0.9 of the run's largest shift, averaged over runs.
        coherent: last round before the first that is past a floor of coherence, averaged over runs.
        holds: runs whose last verdict holds.
        p_trait, p_tail: Holm-adjusted p of the difference to the first arm (paired by item, averaged over
            seeds; of log tail perplexity); None for the first arm and where items differ.
    """

    arm: Arm
    trait: Estimate
    shift: Estimate
    mass: Estimate
    tail: Estimate
    coh_cost: float | None
    saturation: float
    coherent: float
    holds: int
    p_trait: float | None
    p_tail: float | None


def read_run(path: Path) -> Run:
    """Reads a run's finished rounds.

    Raises:
        UserError: no run, or no finished round.
    """
    folder = RunFolder(path)
    keys = flatten(to_mapping(folder.recipe()), str(path))
    numbers = folder.rounds()
    if not numbers:
        raise UserError(f"{path}: no round is finished yet, so there is nothing to compare")
    keys["recipe"], keys["trait"] = Path(keys["recipe"]).stem, folder.facts()["trait"]["name"]
    try:
        return Run(
            path,
            keys,
            StageResult.from_json(read_json(folder.baseline / "base.json")),
            tuple(StageResult.from_json(read_json(folder.round(index) / "healed.json")) for index in numbers),
            tuple(read_json(folder.round(index) / "metrics.json")["verdict"]["label"] for index in numbers),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not what this version of heal writes ({error!r})") from error


def group(runs: Sequence[Run], by: Sequence[str]) -> list[Arm]:
    """Arms in the order in which they first appear; the rounds that all their runs have finished.

    Raises:
        UserError: an unknown key, or two runs of one seed in an arm.
    """
    for name in by:
        if name not in runs[0].keys:
            raise UserError(f"by={name}: not a key of the recipe")
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(", ".join(str(run.keys[name]) for name in by), []).append(run)
    for label, members in found.items():
        seeds = [run.keys["run.seed"] for run in members]
        if len(set(seeds)) < len(seeds):
            same = ", ".join(str(run.path) for run in members if seeds.count(run.keys["run.seed"]) > 1)
            raise UserError(f"{same}: runs of one seed in the arm '{label}'; group by what they differ in, by=KEY,KEY")
    return [Arm(label, tuple(members), min(len(run.healed) for run in members)) for label, members in found.items()]


def lines(arms: Sequence[Arm], settings: Settings) -> list[Line]:
    """The table's rows, in the order of the arms."""
    p_trait, p_tail = (_against_first(arms, name, settings) for name in (TRAIT, TAIL))
    return [_line(arm, settings, one, other) for arm, one, other in zip(arms, p_trait, p_tail, strict=True)]


def _line(arm: Arm, settings: Settings, p_trait: float | None, p_tail: float | None) -> Line:
    last = arm.rounds - 1
    shift = arm.estimate(TRAIT, last, settings, shift=True)
    mass = arm.estimate(MASS, last, settings, shift=True)
    return Line(
        arm,
        arm.estimate(TRAIT, last, settings),
        shift,
        arm.estimate(MASS, last, settings),
        arm.estimate(TAIL, last, settings),
        abs(mass.value) / abs(shift.value) if shift.excludes_zero else None,
        float(np.mean([_saturation(run, arm.rounds) for run in arm.runs])),
        float(np.mean([_coherent(run, arm.rounds) for run in arm.runs])),
        sum(run.verdicts[last] == "holds" for run in arm.runs),
        p_trait,
        p_tail,
    )


def _saturation(run: Run, rounds: int) -> int:
    """The first round whose shift is 0.9 of the run's largest."""
    base = np.nanmean(run.base.signal(TRAIT).values)
    shifts = [float(np.nanmean(stage.signal(TRAIT).values) - base) for stage in run.healed[:rounds]]
    return next(index for index, shift in enumerate(shifts, start=1) if shift >= SATURATED * max(shifts))


def _coherent(run: Run, rounds: int) -> int:
    """Rounds before the first that is past a floor of coherence."""
    return next((index for index, label in enumerate(run.verdicts[:rounds]) if label in BROKEN), rounds)


def _against_first(arms: Sequence[Arm], name: str, settings: Settings) -> list[float | None]:
    """Holm-adjusted p of each arm against the first, after the last round that both have."""
    raw: list[float | None] = [None]
    for arm in arms[1:]:
        last = min(arm.rounds, arms[0].rounds) - 1
        sides = [np.array(each.signal(name, last)) for each in (arms[0], arm)]
        if [answer.prompt for answer in arms[0].runs[0].base.answers] != [
            answer.prompt for answer in arm.runs[0].base.answers
        ]:
            raw.append(None)
            continue
        one, other = (np.nanmean(np.log(side) if name == TAIL else side, axis=0) for side in sides)
        raw.append(sign_flip_p(other - one, settings.resamples, settings.seed))
    adjusted = iter(holm([p for p in raw if p is not None]))
    return [None if p is None else next(adjusted) for p in raw]


def statistic_of(stage: StageResult, name: str) -> Statistic:
    return stage.signal(name).statistic
