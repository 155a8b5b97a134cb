"""What a round comes to, as metrics.json has it: plain numbers, typed."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from heal.dose.root import Outcome
from heal.evaluation.asking.way import Asking
from heal.evaluation.signal import MASS, OF, TRAIT, Validity
from heal.evaluation.stats import Estimate
from heal.evaluation.surgical import SurgicalInformedness
from heal.records import read_record

METRICS = "metrics.json"


@dataclass(frozen=True)
class SignalFigures(Estimate):
    """A signal at a stage: its value and interval, and its paired difference to base."""

    delta: Estimate
    role: str
    unit: str


# Every signal of a stage by name.
Summary = dict[str, SignalFigures]


def of_each_trait(summary: Summary) -> dict[str, SignalFigures]:
    """The persona log-ratio of each trait by its name where a run trains several; empty where it trains one."""
    whole = f"{TRAIT}{OF}"
    return {name.removeprefix(whole): figures for name, figures in summary.items() if name.startswith(whole)}


@dataclass(frozen=True)
class DoseFigures:
    """How strongly the round was steered.

    Attributes:
        c_star: coefficient at dose 1.
        p95: of the per-token KL there, nats.
        outcome: how the search ended.
        audit_p95: the same on held-out prompts; None where it was not audited.
        scale: what the doses were walked down to; 1: as asked.
    """

    c_star: float
    p95: float
    outcome: Outcome
    audit_p95: float | None
    scale: float


@dataclass(frozen=True)
class DoseLine:
    """The completions sampled at one dose: `alpha` times c_star."""

    alpha: float
    count: int
    tail_perplexity: float
    kept_share: float
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationFigures:
    """What was sampled and what the filter kept; `ended_share` is a fraction of the kept completions.

    `asked` is the number of kept completions that was asked for (0: none was).
    """

    made: int
    kept: int
    kept_share: float
    ended_share: float
    doses: tuple[DoseLine, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    asked: int = 0


@dataclass(frozen=True)
class TrainingFigures:
    """Means over the last epoch's optimiser steps, and the last validation (None: nothing was held out).

    D is the barrier's own divergence: None where the recipe has no barrier. `DriftFigures` has every arm's. `strength`
    is lambda after the last step, with which the next round begins: None where it does not follow D.
    """

    loss: float
    ce: float
    D_mean: float | None = None
    D_max: float | None = None
    barrier_on: float | None = None
    validation_ce: float | None = None
    validation_D: float | None = None
    strength: float | None = None

    @property
    def measured(self) -> "TrainingFigures":
        """The same without a D of exactly 0, which is what earlier versions wrote where no divergence was computed."""
        return self if self.D_max else replace(self, D_mean=None, D_max=None, barrier_on=None, validation_D=None)


@dataclass(frozen=True)
class Spread:
    """A divergence over the `n` positions of some texts, nats; `rmse` is the root of the mean square."""

    mean: float
    rmse: float
    p95: float
    max: float
    n: int


@dataclass(frozen=True)
class PositionSpread:
    """KL(student || base) at the `n` positions of some texts from `first` to `last`, counted from 1; nats."""

    first: int
    last: int
    mean: float
    p95: float
    n: int


@dataclass(frozen=True)
class DriftFigures:
    """How far the healed student is from base, in the same way whatever it was trained with (docs/method.md, Drift).

    Attributes:
        completions: on kept completions, by divergence: kl_fwd is KL(base || student), kl_rev KL(student || base).
        answers: the same on the healed student's answers to the held-out prompts.
        by_position: kl_rev along the texts, by their name (`completions`, `answers`); empty in a run of a version that
            did not measure it.
    """

    completions: dict[str, Spread] = field(default_factory=dict)
    answers: dict[str, Spread] = field(default_factory=dict)
    by_position: dict[str, tuple[PositionSpread, ...]] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """In one line: the root mean square of KL(student || base)."""
        found = [(name, texts["kl_rev"]) for name, texts in self.by_text.items() if texts]
        parts = [f"{spread.rmse:.2f} nats on {name} (p95 {spread.p95:.2f})" for name, spread in found]
        return f"rms KL to base {', '.join(parts)}" if parts else "no text has tokens"

    @property
    def by_text(self) -> dict[str, dict[str, Spread]]:
        """Both, by name."""
        return {"completions": self.completions, "answers": self.answers}


@dataclass(frozen=True)
class Coherence:
    """The signal with the least margin: 1 as at base, 0 at its limit, below it broken (-1 where base stands on it)."""

    worst: str
    margin: float


@dataclass(frozen=True)
class CoherenceCost:
    """coh_cost: `|d p_ans_any| / |d trait|`, with both signed differences to base."""

    d_p_ans_any: float
    d_trait: float

    @property
    def ratio(self) -> float:
        return abs(self.d_p_ans_any) / abs(self.d_trait)


@dataclass(frozen=True)
class Verdict:
    """The first check that failed, or `holds`.

    Attributes:
        label: `not finite`, `incoherent`, `not valid`, `no trait shift`, `off-target` or `holds`.
        reason: one line with the numbers it rests on.
    """

    label: str
    reason: str

    @property
    def holds(self) -> bool:
        return self.label == "holds"


@dataclass(frozen=True)
class FoundationFigures:
    """What the scenes say beyond their signals: temperature, and surgical informedness by variant."""

    temperature: float
    surgical: dict[str, SurgicalInformedness] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundMetrics:
    """Everything that a finished round says.

    Attributes:
        round: its number, from 1.
        dose, generation, training: what was done.
        cosine_to_first: of the round's vector with that of round 1.
        steered, healed: the signals of the two stages; steered is None where it was not measured.
        coherence: the worst valid signal of the healed student.
        valid: names of the signals that are valid for the model.
        foundations: None where no scenes were asked.
        verdict: on the healed student.
        drift: of the healed student from base; None in a run of a version that did not measure it.
    """

    round: int
    dose: DoseFigures
    generation: GenerationFigures
    training: TrainingFigures
    cosine_to_first: float
    steered: Summary | None
    healed: Summary
    coherence: Coherence
    valid: tuple[str, ...]
    foundations: FoundationFigures | None
    verdict: Verdict
    drift: DriftFigures | None = None

    @staticmethod
    def load(folder: Path) -> "RoundMetrics":
        """The metrics of the round whose folder that is; its name, not the file, says which round it is.

        Raises:
            UserError: no such file, or not one that heal writes.
        """
        read = read_record(RoundMetrics, folder / METRICS)
        return replace(read, round=int(folder.name) + 1, training=read.training.measured)

    @property
    def trait(self) -> SignalFigures:
        """The persona log-ratio of the healed student; of several traits, their mean."""
        return self.healed[TRAIT]

    @property
    def coh_cost(self) -> CoherenceCost | None:
        """What the trait's shift cost in answer mass; None where the trait's interval includes zero."""
        if not self.trait.delta.excludes_zero or MASS not in self.healed:
            return None
        return CoherenceCost(self.healed[MASS].delta.value, self.trait.delta.value)


@dataclass(frozen=True)
class BaselineMetrics:
    """What the rounds are held against: the signals of the stages that are measured once, and what each is worth.

    Attributes:
        base: the signals of the original model.
        prompted, opposite: the same under the positive and under the negative persona as system prompt.
        validity: of each signal, for this model.
        asking: how each forced choice is put to this model, with every way that was tried.
    """

    base: Summary
    prompted: Summary
    opposite: Summary = field(default_factory=dict)
    validity: dict[str, Validity] = field(default_factory=dict)
    asking: dict[str, Asking] = field(default_factory=dict)

    @staticmethod
    def load(folder: Path) -> "BaselineMetrics":
        """UserError where the baseline's folder has no such file, or not one that heal writes."""
        return read_record(BaselineMetrics, folder / METRICS)
