"""What a signal is, described once: its name, unit, title, direction, limit and when it is valid.

The console, metrics.json, W&B, the report, comparisons, the recipe's limits, validity and the verdict all read it from
here. A readout is one file of heal/evaluation/readouts: `SIGNALS` describes, and `measure(subject, answers)` gives a
`Measured` for each. Descriptions are read without torch and without a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Literal, Protocol, cast

from heal import choices

if TYPE_CHECKING:
    from heal.config import EvaluationConfig, Recipe
    from heal.evaluation.asking.way import Asking
    from heal.evaluation.metrics import SignalFigures, Summary
    from heal.evaluation.stats import Estimate

Role = Literal["trait", "coherence", "off_target"]
Statistic = Literal["mean", "median", "log_mean"]
Items = Literal["answers", "questions", "texts", "vignettes"]

READOUTS = "heal.evaluation.readouts"
TRAIT = "persona_log_ratio"  # what a round is to raise
OF = "/"  # between a signal and the one of several traits that it is read for: `persona_log_ratio/love`
MASS = "p_ans_any"  # what coh_cost holds against it
MIN_MASS = 0.9  # of base on the options of a forced choice

# What it is called when base's answers under the two personas differ by at least so many nats per token.
PERSONA_SIZES = ((0.3, "clearly takes on"), (0.1, "takes on a little of"), (-math.inf, "hardly takes on"))

# What each limit is set to, by the name of its signal.
Limits = Mapping[str, float]


@dataclass(frozen=True)
class Limit:
    """Where coherence ends for a signal. Its key in the recipe's `evaluation` section is made from this.

    Attributes:
        key, default, help, minimum, maximum: of the recipe's key, as `heal.config.key` takes them.
        kind: whether values below it (`floor`) or above it (`ceiling`) are past the limit.
        words: a format of the value, as a verdict's reason shows it.
        over_base: whether the key says how far the value may be from base's, rather than where the limit is.
        log: whether distances to the limit are ratios.
        beyond_noise: whether only that part of a change from base counts of which its whole interval speaks: the value
            is taken at the end of the interval that is nearer to base, and base's own where the interval holds 0.
    """

    key: str
    default: float
    help: str
    kind: Literal["floor", "ceiling"]
    words: str
    over_base: bool = False
    log: bool = False
    beyond_noise: bool = False
    minimum: float | None = None
    maximum: float | None = None

    def at(self, setting: float, base: float) -> float:
        """Where the limit is when its key is `setting` and the signal's value `base` at base."""
        if not self.over_base:
            return setting
        return base + setting if self.kind == "ceiling" else base - setting

    def past(self, value: float, limit: float) -> bool:
        """Whether a value is beyond the limit at `limit`; False for NaN."""
        return value > limit if self.kind == "ceiling" else value < limit

    def counted(self, figures: SignalFigures) -> float:
        """The value that is held against the limit."""
        if not self.beyond_noise or math.isnan(figures.delta.value):
            return figures.value
        base = figures.value - figures.delta.value
        return base + (max(figures.delta.low, 0.0) if self.kind == "ceiling" else min(figures.delta.high, 0.0))


@dataclass(frozen=True)
class Validity:
    """Whether a signal can be believed on this model, and what that rests on."""

    valid: bool
    why: str


@dataclass(frozen=True)
class Evidence:
    """What validity is judged by.

    Attributes:
        base: base's signals.
        personas: base under the positive persona, with paired differences to base under the negative one.
        asking: how each forced choice was put to the model, by its name, with the figures of every way.
    """

    base: Summary
    personas: Summary
    asking: Mapping[str, Asking] = field(default_factory=dict)


class Rule(Protocol):
    """When a signal says something about the model at hand, judged on base before any round."""

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that the rule looks at."""

    def judge(self, name: str, evidence: Evidence) -> Validity:
        """Whether the signal `name` of `evidence.base` is valid."""


@dataclass(frozen=True)
class ForcedChoiceRule:
    """Valid where base puts MIN_MASS on the options and, if something is read off the choice, beats chance.

    What was found when the way of asking was chosen decides where it was chosen, and base's own signals elsewhere.

    Attributes:
        mass: the signal of the mass on the options.
        informedness: the signal of how well the choice tells the classes apart, whose interval must be above 0.
        choice: the forced choice (heal/evaluation/asking) that the signal is read off.
    """

    mass: str
    informedness: str | None = None
    choice: str | None = None

    @property
    def signals(self) -> tuple[str, ...]:
        return (self.mass,) if self.informedness is None else (self.mass, self.informedness)

    def judge(self, name: str, evidence: Evidence) -> Validity:
        base = evidence.base
        asking = evidence.asking.get(self.choice or "")
        if asking is not None and asking.judged is not None:
            return Validity(asking.judged.valid, f"asked by {asking.label}: {asking.judged.why}")
        if missing := [name for name in self.signals if name not in base]:
            return Validity(False, f"{', '.join(missing)} was not measured on base")
        why = f"base's mass on the options {base[self.mass].value:.3f}, at least {MIN_MASS:g} needed"
        if not base[self.mass].value >= MIN_MASS:
            return Validity(False, why)
        if self.informedness is None:
            return Validity(True, why)
        known = base[self.informedness]
        if known.n == 0:
            return Validity(False, f"{why}; informedness needs right answers of two kinds, and there is one or none")
        shown = f"informedness {known.value:+.3f} [{known.low:+.3f}, {known.high:+.3f}] (n = {known.n}), 0 is chance"
        return Validity(known.low > 0, f"{why}; {shown}")


@dataclass(frozen=True)
class PersonasApart:
    """Valid where the signal is higher for base under the positive persona than under the negative one."""

    @property
    def signals(self) -> tuple[str, ...]:
        return ()

    def judge(self, name: str, evidence: Evidence) -> Validity:
        if name not in evidence.personas:
            return Validity(False, f"{name} was not measured under both personas")
        apart = evidence.personas[name].delta
        if math.isnan(apart.value):
            return Validity(False, "no answer could be scored under both personas")
        size = next(words for least, words in PERSONA_SIZES if apart.value >= least)
        return Validity(
            apart.low > 0,
            f"base {size} the persona: positive over negative {apart.value:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}] "
            f"nats/token (n = {apart.n}), against {PERSONA_SIZES[0][0]:g} where a model clearly does",
        )


@dataclass(frozen=True)
class Identifies:
    """Valid where base's own answers are recognised far above chance: the interval lies above twice 1 / N.

    Attributes:
        share: the signal of the fraction of answers that is recognised.
        among: the most prompts that one is recognised among; N is that, or the number of answers.
    """

    share: str
    among: int

    @property
    def signals(self) -> tuple[str, ...]:
        return (self.share,)

    def judge(self, name: str, evidence: Evidence) -> Validity:
        if self.share not in evidence.base:
            return Validity(False, f"{self.share} was not measured on base")
        known = evidence.base[self.share]
        prompts = min(known.n, self.among)
        twice = 2 / prompts if prompts else math.nan
        return Validity(
            known.low > twice,
            f"base's own answers are recognised {known.value:.2f} [{known.low:.2f}, {known.high:.2f}] of the time "
            f"among {prompts} prompts, more than {twice:.2f} needed",
        )


@dataclass(frozen=True)
class Signal:
    """The description of one measured quantity.

    Attributes:
        name: in files, logs and reasons.
        unit: of its values.
        title: of a table's column.
        note: a few words under the title, or after it on an axis, with the unit.
        detail: what it is, in a sentence; a format that may name fields of `recipe`.
        role: what it says something about.
        better: which direction is good; None where it is merely counted.
        statistic: how its items are summarised.
        items: what the items are.
        digits: after the point.
        limit: of coherence, if it has one.
        validity: when it says something about the model, beyond base being within the limit.
        aside: whether it stands among the side effects although it is one of coherence.
        headline: whether it stands beside the trait where there is room for few: headlines and small tables.
        trajectory: whether figures draw the trait against it.
        chance: its value for a model that guesses.
        order: place among the signals of its role; equal ones stand in the order of their files.
    """

    name: str
    unit: str
    title: str
    note: str
    detail: str
    role: Role
    better: Literal["higher", "lower"] | None = None
    statistic: Statistic = "mean"
    items: Items = "answers"
    digits: int = 3
    limit: Limit | None = None
    validity: Rule | None = None
    aside: bool = False
    headline: bool = False
    trajectory: bool = False
    chance: float | None = None
    order: int = 9

    @property
    def label(self) -> str:
        """Of an axis: title and note."""
        return f"{self.title}, {self.note}" if self.note else self.title

    @property
    def term(self) -> str:
        """The title within a sentence: `tail perplexity`, but `KL on neutral text`."""
        return self.title if self.title[1:2].isupper() else self.title[:1].lower() + self.title[1:]

    @property
    def is_side_effect(self) -> bool:
        """Whether tables show it among the side effects, rather than beside the trait and coherence."""
        return self.role == "off_target" or self.aside

    def explain(self, recipe: Recipe) -> str:
        """What it is in a run of this recipe, with its limit."""
        text = self.detail.format(recipe=recipe)
        if self.limit is None:
            return text
        setting = f"{self.limit.kind} {getattr(recipe.evaluation, self.limit.key):g}"
        side = "above" if self.limit.kind == "ceiling" else "below"
        over_base = f" {side} base" if self.limit.over_base else ""
        noise = ", which the whole interval of the difference must pass" if self.limit.beyond_noise else ""
        return f"{text}; {setting}{over_base}{noise}"

    def worsened(self, shift: Estimate) -> bool:
        """Whether a difference lies on the bad side of 0 with its whole interval; False where no side is bad."""
        return (self.better == "higher" and shift.high < 0) or (self.better == "lower" and shift.low > 0)

    def of(self, trait: str) -> Signal:
        """The same of one of the traits that a run trains together."""
        return replace(
            self,
            name=f"{self.name}{OF}{trait}",
            title=f"{self.title} {trait}",
            detail=f"{self.detail}; of {trait} alone, while {self.name} is the mean over the traits",
        )

    def measured(self, values: Sequence[float]) -> Measured:
        """Its values at a stage, one an item; NaN where an item could not be scored."""
        return Measured(self.name, self.unit, self.role, self.statistic, tuple(values), self.items)


@dataclass(frozen=True)
class Measured:
    """One signal's values at a stage, in the same order of items at every stage.

    Unit, role, statistic and items are those of its description, so that a file explains itself.
    """

    name: str
    unit: str
    role: Role
    statistic: Statistic
    values: tuple[float, ...]
    items: Items = "answers"


@cache
def signals() -> dict[str, Signal]:
    """Every signal of every readout by name, in display order: the trait, coherence, then side effects."""
    described: list[Signal] = []
    for module in choices.names(READOUTS):
        described += choices.load(READOUTS, module, "SIGNALS")
    by_name = {signal.name: signal for signal in described}
    assert len(by_name) == len(described), f"a signal is described twice: {sorted(each.name for each in described)}"
    return {signal.name: signal for signal in sorted(described, key=_place)}


def signal_named(name: str) -> Signal | None:
    """The description of a signal, or of what it is for one of several traits; None where no readout describes it."""
    whole, _, trait = name.partition(OF)
    signal = signals().get(whole)
    return signal.of(trait) if signal is not None and trait else signal


def known(names: Iterable[str]) -> list[Signal]:
    """The signals among `names` that a readout describes, in display order; those of single traits after their mean."""
    by_whole: dict[str, list[str]] = {}
    for name in names:
        by_whole.setdefault(name.partition(OF)[0], []).append(name)
    return [
        found for whole in signals() for name in by_whole.get(whole, ()) if (found := signal_named(name)) is not None
    ]


def described(summary: Mapping[str, SignalFigures]) -> list[Signal]:
    """The signals of a stage in display order; what no readout describes any more comes last, under its own name."""
    return known(summary) + [
        Signal(name, figures.unit, title=name, note=figures.unit, detail="", role=cast(Role, figures.role))
        for name, figures in summary.items()
        if signal_named(name) is None
    ]


def limited() -> dict[str, Limit]:
    """The limit of every signal that has one, by the signal's name."""
    return {name: signal.limit for name, signal in signals().items() if signal.limit is not None}


def limits_of(settings: EvaluationConfig) -> dict[str, float]:
    """What a recipe sets each limit to, by the signal's name."""
    return {name: float(getattr(settings, limit.key)) for name, limit in limited().items()}


def _place(signal: Signal) -> tuple[int, int]:
    group = 0 if signal.role == "trait" else 1 if not signal.is_side_effect else 2 if signal.aside else 3
    return group, signal.order
