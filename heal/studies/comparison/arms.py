"""Runs of the same kind as one arm: what its rounds came to, over seeds and items."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from heal.errors import UserError
from heal.evaluation.choice import BROKEN
from heal.evaluation.metrics import CoherenceCost
from heal.evaluation.signal import MASS, TRAIT, Signal, signals
from heal.evaluation.stats import Estimate, holm, over_seeds, sign_flip_p
from heal.evaluation.validity import doubts
from heal.studies.comparison.runs import BASE, Run, younger

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
    _known: dict[Any, Estimate] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def last(self) -> "Round":
        """The last round, or the stage that is the arm."""
        return self.stage or self.rounds - 1

    @property
    def signals(self) -> list[str]:
        """The signals that every run of the arm has everywhere."""
        places: list[Round] = [self.stage] if self.stage else [BASE, *range(self.rounds)]
        return [
            name for name in self.runs[0].signals if all(run.has(name, where) for run in self.runs for where in places)
        ]

    def items(self, name: str, where: "Round") -> list[list[float]]:
        """A signal's items of every run after a round (an index from 0) or at a stage of the baseline."""
        return [run.values(name, where) for run in self.runs]

    def estimate(self, name: str, where: "Round", settings: "Settings", shift: bool = False) -> Estimate | None:
        """A signal over seeds and items, or its paired shift from base; None where a run lacks it."""
        places = [where, BASE] if shift else [where]
        if not all(run.has(name, place) for run in self.runs for place in places):
            return None
        asked = (name, where, settings, shift)
        if asked not in self._known:
            base = self.items(name, BASE) if shift else None
            statistic = self.runs[0].signals[name]
            found = over_seeds(self.items(name, where), base, statistic, settings.resamples, settings.seed)
            self._known[asked] = found
        return self._known[asked]


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
        values: the trait and the signals of the headline, by name; None where a run lacks one.
        shift: the trait's paired difference to base.
        margin: the coherence margin, averaged over runs (1 as at base, 0 at a limit).
        cost: of the shift, in answer mass; None where the shift's interval includes 0.
        saturation: rounds until 0.9 of the run's largest shift, averaged over runs; None where a run never shifted
            upwards.
        coherent: last round before the first that is past a limit of coherence, averaged over runs.
        holds: runs whose last verdict holds.
        p: by signal (of TESTED), the Holm-adjusted p of the difference to the first trained arm, paired by item and
            averaged over seeds; None for that arm, for untrained ones and where items or rounds differ.
    """

    arm: Arm
    values: dict[str, Estimate | None]
    shift: Estimate | None
    margin: float
    cost: CoherenceCost | None
    saturation: float | None
    coherent: float | None
    holds: int | None
    p: dict[str, float | None]


def shown() -> list[Signal]:
    """The signals that have a column: the trait, and what its description puts into headlines."""
    return [signal for signal in signals().values() if signal.role == "trait" or signal.headline]


def drawn() -> list[Signal]:
    """The signals that the trait is drawn against."""
    return [signal for signal in signals().values() if signal.trajectory]


def tested() -> list[Signal]:
    """The signals in which arms are tested against the first: the trait, and those that it is drawn against."""
    return [signals()[TRAIT], *drawn()]


def group(runs: Sequence[Run], by: Sequence[str]) -> list[Arm]:
    """Arms in the order in which they first appear; the rounds that all their runs have finished.

    Raises:
        UserError: an unknown key, runs in an arm that differ in more than their seed, or held-out prompts that
            changed under the same keys.
    """
    for name in by:
        if name not in runs[0].keys and name not in younger():
            raise UserError(f"by={name}: not a key of the recipe")
    by_label: dict[str, list[Run]] = {}
    for run in runs:
        by_label.setdefault(", ".join(str(run.key(name)) for name in by), []).append(run)
    for label, members in by_label.items():
        _check_arm(label, members)
    _check_prompts(runs)
    return [Arm(label, tuple(members), min(run.rounds for run in members)) for label, members in by_label.items()]


def untrained(arms: Sequence[Arm]) -> list[Arm]:
    """Base, prompted and raw steering by dose as arms of their own, from runs that measured them.

    One for each trait, model and way of measuring that there is; their names say what they differ in.
    """
    runs = [run for arm in arms for run in arm.runs]
    traits = list(dict.fromkeys(run.keys["trait"] for run in runs))
    arms_apart: list[Arm] = []
    for stage in dict.fromkeys(stage for run in runs for stage in run.stages):
        having = [run for run in runs if stage in run.stages]
        prefixes = (*_BASE_KEYS, *(_STEERED_KEYS if stage.startswith("steered") else ()))
        told_apart = [name for name in _differing(having) if name.startswith(prefixes)]
        kinds: dict[str, list[Run]] = {}
        for run in having:
            kinds.setdefault(", ".join([stage, *(str(run.key(name)) for name in told_apart)]), []).append(run)
        for label, members in kinds.items():
            by_seed = {run.keys["run.seed"]: run for run in members}
            arms_apart.append(Arm(label, tuple(by_seed[seed] for seed in sorted(by_seed)), 0, stage))
    return sorted(arms_apart, key=lambda arm: traits.index(arm.runs[0].keys["trait"]))


def lines(arms: Sequence[Arm], settings: Settings) -> list[Line]:
    """The table's rows, in the order of the arms."""
    p_values = {signal.name: _against_first(arms, signal, settings) for signal in tested()}
    return [_line(arm, settings, {name: p[place] for name, p in p_values.items()}) for place, arm in enumerate(arms)]


def not_valid(arms: Sequence[Arm]) -> list[str]:
    """What some run marks as not valid for its model, in words."""
    return list(dict.fromkeys(text for arm in arms for run in arm.runs for text in doubts(run.validity)))


def _differing(runs: Sequence[Run]) -> list[str]:
    """The keys in which some of the runs differ, beyond those that are free."""
    names = dict.fromkeys(name for run in runs for name in run.keys if not name.startswith(_FREE))
    return [name for name in names if any(run.key(name) != runs[0].key(name) for run in runs)]


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
        known = first.setdefault(tuple(run.key(name) for name in _PROMPT_KEYS), run)
        if run.prompts != known.prompts:
            raise UserError(
                f"{known.name}, {run.name}: the held-out prompts of the trait '{run.keys['trait']}' changed between "
                "these runs; compare them apart"
            )


def _line(arm: Arm, settings: Settings, p: dict[str, float | None]) -> Line:
    trained = arm.stage is None
    return Line(
        arm=arm,
        values={signal.name: arm.estimate(signal.name, arm.last, settings) for signal in shown()},
        shift=arm.estimate(TRAIT, arm.last, settings, shift=True),
        margin=float(np.mean([run.margin(arm.last) for run in arm.runs])),
        cost=_cost(arm, settings),
        saturation=_saturation(arm) if trained else None,
        coherent=float(np.mean([_coherent(run, arm.rounds) for run in arm.runs])) if trained else None,
        holds=sum(run.verdicts[arm.rounds - 1] == "holds" for run in arm.runs) if trained else None,
        p=p,
    )


def _cost(arm: Arm, settings: Settings) -> CoherenceCost | None:
    shift, mass = (arm.estimate(name, arm.last, settings, shift=True) for name in (TRAIT, MASS))
    if shift is None or mass is None or not shift.excludes_zero:
        return None
    return CoherenceCost(mass.value, shift.value)


def _saturation(arm: Arm) -> float | None:
    """The first round whose shift is 0.9 of a run's largest, averaged over runs; None where one never rose."""
    rounds = []
    for run in arm.runs:
        base = np.nanmean(run.values(TRAIT, BASE))
        shifts = np.array([np.nanmean(run.values(TRAIT, index)) - base for index in range(arm.rounds)])
        if not np.nanmax(shifts) > 0:
            return None
        rounds.append(1 + int(np.argmax(shifts >= SATURATED * np.nanmax(shifts))))
    return float(np.mean(rounds))


def _coherent(run: Run, rounds: int) -> int:
    """Rounds before the first that is past a floor of coherence."""
    return next((index for index, label in enumerate(run.verdicts[:rounds]) if label in BROKEN), rounds)


def _against_first(arms: Sequence[Arm], signal: Signal, settings: Settings) -> list[float | None]:
    """Holm-adjusted p of each trained arm against the first, after the last round; None where that is another one."""
    first = next((arm for arm in arms if arm.stage is None), None)
    raw = [_p_value(first, arm, signal, settings) for arm in arms]
    adjusted = iter(holm([p for p in raw if p is not None]))
    return [None if p is None else next(adjusted) for p in raw]


def _p_value(first: Arm | None, arm: Arm, signal: Signal, settings: Settings) -> float | None:
    """Of a difference in the mean over seeds, or in that of the logarithm where distances in the signal are ratios."""
    if first is None or arm is first or arm.stage is not None:
        return None
    if arm.rounds != first.rounds or arm.runs[0].prompts != first.runs[0].prompts:
        return None
    if signal.name not in first.signals or signal.name not in arm.signals:
        return None
    log = signal.limit is not None and signal.limit.log
    sides = [np.array(side.items(signal.name, side.last)) for side in (first, arm)]
    one, other = (np.nanmean(np.log(side_RN) if log else side_RN, axis=0) for side_RN in sides)
    return sign_flip_p(other - one, settings.resamples, settings.seed)
