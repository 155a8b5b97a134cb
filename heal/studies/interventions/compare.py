"""Interventions side by side at one dose: what each moved on target, off target and in coherence.

Surgical informedness and gated selectivity take both signs. Of an intervention of which one sign was measured the
former is one-armed, the latter is held against base on the other side, and its row says so. docs/method.md, Surgical
informedness.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from heal.evaluation.metrics import Coherence, Summary
from heal.evaluation.readouts.moral_foundations import CLR, VIGNETTE_MASS
from heal.evaluation.readouts.wrongness import WRONGNESS
from heal.evaluation.results import StageResult, summarise
from heal.evaluation.scenes import clr_values, surgical_sides
from heal.evaluation.signal import TRAIT, Limits, limits_of
from heal.evaluation.stats import Estimate
from heal.evaluation.surgical import DeltaLogit, SurgicalInformedness, delta_logit, gated_selectivity
from heal.evaluation.verdict import coherence
from heal.evaluation.vignettes import FOUNDATIONS, Vignette
from heal.randomness import derive_seed
from heal.run.session import Session
from heal.studies.interventions.effects import MeasuredArm
from heal.trait import Trait


@dataclass(frozen=True)
class Line:
    """One intervention, turned one way, at its dose.

    Attributes:
        name, sign: of the intervention.
        c_star: signed raw coefficient; None for a prompt.
        spent: p95 KL on the calibration prompts, nats.
        on_target: whether that is the target; None for a prompt.
        summary: every signal, with its difference to base.
        target: the meant foundation's `clr` over base, nats; None without scenes or a meant foundation.
        off_target: mean over the other foundations of the size of their shifts, nats.
        logits: change of the logit of wrongness by foundation.
        coherence: worst valid signal and its margin.
        seconds: fitting, calibration and measuring.
    """

    name: str
    sign: int
    c_star: float | None
    spent: float
    on_target: bool | None
    summary: Summary
    target: Estimate | None
    off_target: float
    logits: Mapping[str, DeltaLogit]
    coherence: Coherence
    seconds: float

    @property
    def shift(self) -> Estimate:
        """The persona log-ratio over base, nats per token."""
        return self.summary[TRAIT].delta


@dataclass(frozen=True)
class Pair:
    """What both signs of an intervention say together.

    Attributes:
        name: of the intervention.
        lines: one a sign.
        surgical: surgical informedness by variant.
        selectivity: gated selectivity, nats; NaN without scenes or a meant foundation.
        other_side: what stood in for a sign that was not measured, in gated selectivity; empty where both were.
    """

    name: str
    lines: tuple[Line, ...]
    surgical: Mapping[str, SurgicalInformedness] = field(default_factory=dict)
    selectivity: float = math.nan
    other_side: str = ""

    @property
    def shift(self) -> float:
        """By which the table is sorted: the trait's shift in the direction that each sign means, averaged."""
        return sum(line.sign * line.shift.value for line in self.lines) / len(self.lines)


@dataclass(frozen=True)
class Setting:
    """What all lines are made with: the limits, what is valid, the scenes and the intervals."""

    trait: Trait
    limits: Limits
    valid: Collection[str]
    scenes: tuple[Vignette, ...]
    resamples: int
    seed: int

    @property
    def meant(self) -> str:
        """The foundation that the trait means, where scenes were asked about it; else empty."""
        return self.trait.foundation if self.scenes else ""


def setting_of(session: Session, valid: Collection[str]) -> Setting:
    """The study's, with what is valid on its base."""
    settings = session.recipe.evaluation
    return Setting(
        session.trait,
        limits_of(settings),
        valid,
        session.vignettes,
        settings.resamples,
        derive_seed(session.recipe.run.seed, "bootstrap"),
    )


def pairs(measured: Sequence[MeasuredArm], base: StageResult, setting: Setting) -> list[Pair]:
    """One entry an intervention, the largest shift of the trait first."""
    by_name: dict[str, dict[int, MeasuredArm]] = {}
    for side in measured:
        by_name.setdefault(side.arm.name, {})[side.arm.sign] = side
    unsorted = [_pair(name, sides, base, setting) for name, sides in by_name.items()]
    return sorted(unsorted, key=lambda pair: -pair.shift)


def _pair(name: str, sides: Mapping[int, MeasuredArm], base: StageResult, setting: Setting) -> Pair:
    lines = tuple(_line(side, base, setting) for _, side in sorted(sides.items(), reverse=True))
    if not setting.meant:
        return Pair(name, lines)
    results = {sign: side.result for sign, side in sides.items()}
    up, down = results.get(1, base), results.get(-1, base)
    trait = setting.trait
    surgical = surgical_sides(trait, setting.scenes, base, results.get(1), results.get(-1))
    selectivity = gated_selectivity(
        clr_values(up),
        clr_values(down),
        trait.foundation,
        trait.intent,
        up.mass(VIGNETTE_MASS.name),
        down.mass(VIGNETTE_MASS.name),
        base.mass(VIGNETTE_MASS.name),
    )
    return Pair(name, lines, surgical, selectivity, "" if len(sides) == 2 else "base")


def _line(side: MeasuredArm, base: StageResult, setting: Setting) -> Line:
    arm, summary = side.arm, summarise(side.result, base, setting.resamples, setting.seed)
    others = [CLR[name].name for name in FOUNDATIONS if setting.meant and name != setting.meant]
    sizes = [abs(summary[name].delta.value) for name in others]
    return Line(
        arm.name,
        arm.sign,
        arm.c_star,
        arm.spent,
        arm.on_target,
        summary,
        summary[CLR[setting.meant].name].delta if setting.meant else None,
        sum(sizes) / len(sizes) if sizes else math.nan,
        _logits(side.result, base, setting),
        coherence(summary, setting.limits, setting.valid),
        arm.seconds + side.seconds,
    )


def _logits(result: StageResult, base: StageResult, setting: Setting) -> dict[str, DeltaLogit]:
    """Change of the logit of wrongness over the scenes of each foundation."""
    if not setting.scenes:
        return {}
    now, before = result.signal(WRONGNESS.name).values, base.signal(WRONGNESS.name).values
    logits = {}
    for name in FOUNDATIONS:
        rows = [index for index, scene in enumerate(setting.scenes) if scene.foundation == name]
        if rows:
            logits[name] = delta_logit([now[row] for row in rows], [before[row] for row in rows])
    return logits
