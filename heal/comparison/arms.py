"""Runs of the same kind as one arm: what its rounds came to, over seeds and items."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heal.comparison.runs import BASE, Run
from heal.errors import UserError
from heal.evaluation.choice import BROKEN
from heal.evaluation.stats import Estimate, holm, over_seeds, sign_flip_p
from heal.evaluation.validity import doubts

TRAIT, MASS, TAIL = "persona_log_ratio", "p_ans_any", "tail_perplexity"
SATURATED = 0.9  # of the largest shift of the trait


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing that they are grouped by, one a seed.

    Attributes:
        name: the values that the runs share.
        runs: one a seed.
        rounds: that all of them have finished; 0 for an arm that was not trained (base, prompted, raw steering).
        stage: which stage of the runs' baseline an untrained arm is; None where it is trained.
    """

    name: str
    runs: tuple[Run, ...]
    rounds: int
    stage: str | None = None

    @property
    def last(self) -> "Round":
        """The last round, or the stage that is the arm."""
        return self.stage or self.rounds - 1

    def signal(self, name: str, where: "Round") -> list[list[float]]:
        """A signal's items of every run after a round (a number from 0) or at a stage of the baseline."""
        return [list(run.values(name, where)) for run in self.runs]

    def estimate(self, name: str, where: "Round", settings: "Settings", shift: bool = False) -> Estimate:
        """A signal over seeds and items, or its paired shift from base."""
        statistic = self.runs[0].signals[name]
        base = self.signal(name, BASE) if shift else None
        return over_seeds(self.signal(name, where), base, statistic, settings.resamples, settings.seed)


Round = int | str


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
        margin: the least coherence margin of each run, averaged over runs (1 as at base, 0 at a limit).
        coh_cost: `|d mass| / |d trait|`; None where the shift's interval includes 0.
        saturation: rounds until 0.9 of the run's largest shift, averaged over runs.
        coherent: last round before the first that is past a floor of coherence, averaged over runs.
        holds: runs whose last verdict holds.
        p_trait, p_tail: Holm-adjusted p of the difference to the first trained arm (paired by item, averaged over
            seeds; of log tail perplexity); None for that arm, for untrained ones and where items differ.
    """

    arm: Arm
    trait: Estimate
    shift: Estimate
    mass: Estimate
    tail: Estimate
    margin: float
    coh_cost: float | None
    saturation: float | None
    coherent: float | None
    holds: int | None
    p_trait: float | None
    p_tail: float | None


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
            same = ", ".join(run.name for run in members if seeds.count(run.keys["run.seed"]) > 1)
            raise UserError(f"{same}: runs of one seed in the arm '{label}'; group by what they differ in, by=KEY,KEY")
    return [Arm(label, tuple(members), min(run.rounds for run in members)) for label, members in found.items()]


def untrained(arms: Sequence[Arm]) -> list[Arm]:
    """Base, prompted and raw steering by dose as arms of their own, for each trait, from runs that measured them."""
    found = []
    for name in dict.fromkeys(run.keys["trait"] for arm in arms for run in arm.runs):
        runs = [run for arm in arms for run in arm.runs if run.keys["trait"] == name]
        for stage in dict.fromkeys(stage for run in runs for stage in run.stages):
            by_seed = {run.keys["run.seed"]: run for run in runs if stage in run.stages}
            shown = f"{stage}, {name}" if len({run.keys["trait"] for arm in arms for run in arm.runs}) > 1 else stage
            found.append(Arm(shown, tuple(by_seed[seed] for seed in sorted(by_seed)), 0, stage))
    return found


def lines(arms: Sequence[Arm], settings: Settings) -> list[Line]:
    """The table's rows, in the order of the arms."""
    p_trait, p_tail = (_against_first(arms, name, settings) for name in (TRAIT, TAIL))
    return [_line(arm, settings, one, other) for arm, one, other in zip(arms, p_trait, p_tail, strict=True)]


def not_valid(arms: Sequence[Arm]) -> list[str]:
    """What some run marks as not valid for its model, in words."""
    return list(dict.fromkeys(text for arm in arms for run in arm.runs for text in doubts(run.validity)))


def _line(arm: Arm, settings: Settings, p_trait: float | None, p_tail: float | None) -> Line:
    shift = arm.estimate(TRAIT, arm.last, settings, shift=True)
    mass = arm.estimate(MASS, arm.last, settings, shift=True)
    trained = arm.stage is None
    return Line(
        arm,
        arm.estimate(TRAIT, arm.last, settings),
        shift,
        arm.estimate(MASS, arm.last, settings),
        arm.estimate(TAIL, arm.last, settings),
        float(np.mean([run.margin(arm.last) for run in arm.runs])),
        abs(mass.value) / abs(shift.value) if shift.excludes_zero else None,
        float(np.mean([_saturation(run, arm.rounds) for run in arm.runs])) if trained else None,
        float(np.mean([_coherent(run, arm.rounds) for run in arm.runs])) if trained else None,
        sum(run.verdicts[arm.rounds - 1] == "holds" for run in arm.runs) if trained else None,
        p_trait,
        p_tail,
    )


def _saturation(run: Run, rounds: int) -> int:
    """The first round whose shift is 0.9 of the run's largest."""
    base = np.nanmean(run.values(TRAIT, BASE))
    shifts = [float(np.nanmean(run.values(TRAIT, index)) - base) for index in range(rounds)]
    return next(index for index, shift in enumerate(shifts, start=1) if shift >= SATURATED * max(shifts))


def _coherent(run: Run, rounds: int) -> int:
    """Rounds before the first that is past a floor of coherence."""
    return next((index for index, label in enumerate(run.verdicts[:rounds]) if label in BROKEN), rounds)


def _against_first(arms: Sequence[Arm], name: str, settings: Settings) -> list[float | None]:
    """Holm-adjusted p of each trained arm against the first, after the last round that both have."""
    trained = [arm for arm in arms if arm.stage is None]
    raw: list[float | None] = []
    for arm in arms:
        if arm.stage is not None or arm is trained[0] or arm.runs[0].prompts != trained[0].runs[0].prompts:
            raw.append(None)
            continue
        last = min(arm.rounds, trained[0].rounds) - 1
        sides = [np.array(each.signal(name, last)) for each in (trained[0], arm)]
        one, other = (np.nanmean(np.log(side) if name == TAIL else side, axis=0) for side in sides)
        raw.append(sign_flip_p(other - one, settings.resamples, settings.seed))
    adjusted = iter(holm([p for p in raw if p is not None]))
    return [None if p is None else next(adjusted) for p in raw]
