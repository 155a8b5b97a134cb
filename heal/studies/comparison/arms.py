"""Runs of the same kind as one arm: what its rounds came to, over seeds and items."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heal.errors import UserError
from heal.evaluation.choice import BROKEN
from heal.evaluation.stats import Estimate, holm, over_seeds, sign_flip_p
from heal.evaluation.validity import doubts
from heal.studies.comparison.runs import BASE, Run

TRAIT, MASS, TAIL = "persona_log_ratio", "p_ans_any", "tail_perplexity"
SATURATED = 0.9  # of the largest shift of the trait

# Keys that runs of one arm may differ in: they change no measured item, or only how far the runs went.
_FREE = ("run.", "tracking.", "compute.", "evaluation.doses", "evaluation.steered")
# What base's answers hang on, and raw steering's besides.
_BASE_KEYS, _STEERED_KEYS = ("trait", "model.", "evaluation."), ("steer.", "calibration.")
_PROMPT_KEYS = ("trait", "evaluation.prompts", "evaluation.skip")


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
        saturation: rounds until 0.9 of the run's largest shift, averaged over runs; None where a run never shifted
            upwards.
        coherent: last round before the first that is past a floor of coherence, averaged over runs.
        holds: runs whose last verdict holds.
        p_trait, p_tail: Holm-adjusted p of the difference to the first trained arm (paired by item, averaged over
            seeds; of log tail perplexity); None for that arm, for untrained ones and where items or rounds differ.
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
        UserError: an unknown key, runs in an arm that differ in more than their seed, or held-out prompts that
            changed under the same keys.
    """
    for name in by:
        if name not in runs[0].keys:
            raise UserError(f"by={name}: not a key of the recipe")
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(", ".join(str(run.keys[name]) for name in by), []).append(run)
    for label, members in found.items():
        _check_arm(label, members)
    _check_prompts(runs)
    return [Arm(label, tuple(members), min(run.rounds for run in members)) for label, members in found.items()]


def untrained(arms: Sequence[Arm]) -> list[Arm]:
    """Base, prompted and raw steering by dose as arms of their own, from runs that measured them.

    One for each trait, model and way of measuring that there is; their names say what they differ in.
    """
    runs = [run for arm in arms for run in arm.runs]
    traits = list(dict.fromkeys(run.keys["trait"] for run in runs))
    found: list[Arm] = []
    for stage in dict.fromkeys(stage for run in runs for stage in run.stages):
        having = [run for run in runs if stage in run.stages]
        prefixes = (*_BASE_KEYS, *(_STEERED_KEYS if stage.startswith("steered") else ()))
        told_apart = [name for name in _differing(having) if name.startswith(prefixes)]
        kinds: dict[str, list[Run]] = {}
        for run in having:
            kinds.setdefault(", ".join([stage, *(str(run.keys.get(name)) for name in told_apart)]), []).append(run)
        for label, members in kinds.items():
            by_seed = {run.keys["run.seed"]: run for run in members}
            found.append(Arm(label, tuple(by_seed[seed] for seed in sorted(by_seed)), 0, stage))
    return sorted(found, key=lambda arm: traits.index(arm.runs[0].keys["trait"]))


def lines(arms: Sequence[Arm], settings: Settings) -> list[Line]:
    """The table's rows, in the order of the arms."""
    p_trait, p_tail = (_against_first(arms, name, settings) for name in (TRAIT, TAIL))
    return [_line(arm, settings, one, other) for arm, one, other in zip(arms, p_trait, p_tail, strict=True)]


def not_valid(arms: Sequence[Arm]) -> list[str]:
    """What some run marks as not valid for its model, in words."""
    return list(dict.fromkeys(text for arm in arms for run in arm.runs for text in doubts(run.validity)))


def _differing(runs: Sequence[Run]) -> list[str]:
    """The keys in which some of the runs differ, beyond those that are free."""
    names = dict.fromkeys(name for run in runs for name in run.keys if not name.startswith(_FREE))
    return [name for name in names if any(run.keys.get(name) != runs[0].keys.get(name) for run in runs)]


def _check_arm(label: str, runs: Sequence[Run]) -> None:
    """Raises UserError unless the runs differ in their seed, one each, and in nothing that is measured."""
    differing = _differing(runs)
    if differing:
        raise UserError(
            f"the runs of the arm '{label}' differ in {', '.join(differing)}; group by it as well, by=KEY,KEY, "
            "or compare them apart"
        )
    seeds = [run.keys["run.seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        same = ", ".join(run.name for run in runs if seeds.count(run.keys["run.seed"]) > 1)
        raise UserError(f"{same}: runs of one seed in the arm '{label}'; give each run once")


def _check_prompts(runs: Sequence[Run]) -> None:
    """Raises UserError where the same trait under the same keys was asked about in other prompts."""
    first: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        known = first.setdefault(tuple(run.keys.get(name) for name in _PROMPT_KEYS), run)
        if run.prompts != known.prompts:
            raise UserError(
                f"{known.name}, {run.name}: the held-out prompts of the trait '{run.keys['trait']}' changed between "
                "these runs; compare them apart"
            )


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
        _saturation(arm) if trained else None,
        float(np.mean([_coherent(run, arm.rounds) for run in arm.runs])) if trained else None,
        sum(run.verdicts[arm.rounds - 1] == "holds" for run in arm.runs) if trained else None,
        p_trait,
        p_tail,
    )


def _saturation(arm: Arm) -> float | None:
    """The first round whose shift is 0.9 of a run's largest, averaged over runs; None where one never rose."""
    found = []
    for run in arm.runs:
        base = np.nanmean(run.values(TRAIT, BASE))
        shifts = np.array([np.nanmean(run.values(TRAIT, index)) - base for index in range(arm.rounds)])
        if not np.nanmax(shifts) > 0:
            return None
        found.append(1 + int(np.argmax(shifts >= SATURATED * np.nanmax(shifts))))
    return float(np.mean(found))


def _coherent(run: Run, rounds: int) -> int:
    """Rounds before the first that is past a floor of coherence."""
    return next((index for index, label in enumerate(run.verdicts[:rounds]) if label in BROKEN), rounds)


def _against_first(arms: Sequence[Arm], name: str, settings: Settings) -> list[float | None]:
    """Holm-adjusted p of each trained arm against the first, after the last round; None where that is another one."""
    trained = [arm for arm in arms if arm.stage is None]
    raw: list[float | None] = []
    for arm in arms:
        unlike = arm.rounds != trained[0].rounds or arm.runs[0].prompts != trained[0].runs[0].prompts
        if arm.stage is not None or arm is trained[0] or unlike:
            raw.append(None)
            continue
        sides = [np.array(each.signal(name, arm.last)) for each in (trained[0], arm)]
        one, other = (np.nanmean(np.log(side) if name == TAIL else side, axis=0) for side in sides)
        raw.append(sign_flip_p(other - one, settings.resamples, settings.seed))
    adjusted = iter(holm([p for p in raw if p is not None]))
    return [None if p is None else next(adjusted) for p in raw]
