"""Whether a round worked, in the order that SPEC section 8 gives: a ratio alone would call a wreck a win.

Coherence is the worst of its signals: each has a limit, and its margin is 1 at base and 0 at the limit. Only
signals that are valid for the model count (heal/evaluation/validity.py).
"""

import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any

from heal.config import EvaluationConfig
from heal.evaluation.stats import Estimate

ALIVE = 0.75  # mass on the probe's answers from which a model that is interrupted counts as alive


@dataclass(frozen=True)
class Floors:
    """Limits of coherence: absolute ones, and for the scaffold how far it may rise over base, nats per token."""

    min_p_ans_any: float
    max_repetition_share: float
    max_tail_perplexity: float
    min_alive_share: float
    max_scaffold_rise: float

    @staticmethod
    def of(settings: EvaluationConfig) -> "Floors":
        """The recipe's."""
        return Floors(
            settings.min_p_ans_any,
            settings.max_repetition_share,
            settings.max_tail_perplexity,
            settings.min_alive_share,
            settings.max_scaffold_rise,
        )


@dataclass(frozen=True)
class Limited:
    """A coherence signal that has a limit.

    Attributes:
        rises: whether it is higher that is worse.
        limit: from the floors and base's value.
        log: whether distances are ratios.
        words: what its value looks like in a reason.
    """

    rises: bool
    limit: Callable[[Floors, float], float]
    words: Callable[[float], str]
    log: bool = False

    def past(self, value: float, floors: Floors, base: float) -> bool:
        """Whether a value is past the limit that base's value gives."""
        limit = self.limit(floors, base)
        return value > limit if self.rises else value < limit


LIMITED = {
    "p_ans_any": Limited(False, lambda floors, base: floors.min_p_ans_any, "p_ans_any {:.2f}".format),
    "alive_share": Limited(False, lambda floors, base: floors.min_alive_share, "alive answers {:.0%}".format),
    "scaffold_nats": Limited(
        True, lambda floors, base: base + floors.max_scaffold_rise, "scaffold {:.2f} nats/token".format
    ),
    "repetition_share": Limited(
        True, lambda floors, base: floors.max_repetition_share, "looping answers {:.0%}".format
    ),
    "tail_perplexity": Limited(
        True, lambda floors, base: floors.max_tail_perplexity, "tail perplexity {:.1f}".format, log=True
    ),
}


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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Coherence:
    """The signal with the least margin: 1 as at base, 0 at its limit, below it broken (-1 where base stands on it)."""

    worst: str
    margin: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def coherence(
    values: dict[str, Estimate], deltas: dict[str, Estimate], floors: Floors, valid: Collection[str]
) -> Coherence:
    """The worst of the valid coherence signals.

    Raises:
        ValueError: none is valid.
    """
    margins = {name: _margin(name, values, deltas, floors) for name in LIMITED if name in values and name in valid}
    if not margins:
        raise ValueError("no signal of coherence is valid for this model")
    worst = min(margins, key=lambda name: (math.isfinite(margins[name]), margins[name]))
    return Coherence(worst, margins[worst])


def _margin(name: str, values: dict[str, Estimate], deltas: dict[str, Estimate], floors: Floors) -> float:
    value, limited = values[name].value, LIMITED[name]
    base = value - deltas[name].value
    limit = limited.limit(floors, base)
    if limited.log:
        value, base, limit = (math.log(max(number, 1e-12)) for number in (value, base, limit))
    if math.isinf(limit):
        return 1.0  # no limit was set
    if math.isclose(base, limit, abs_tol=1e-9):
        return -1.0 if not math.isclose(value, base, abs_tol=1e-9) and (value > base) == limited.rises else 1.0
    return (limit - value) / (limit - base)


def incoherences(
    values: dict[str, Estimate], deltas: dict[str, Estimate], floors: Floors, valid: Collection[str]
) -> list[str]:
    """Every valid coherence signal that is past its limit, in words; empty when coherent.

    Accuracy has no limit of its own: it fails when the interval of its change from base lies below zero.
    """
    found = []
    for name, limited in LIMITED.items():
        if name not in values or name not in valid:
            continue
        value = values[name].value
        base = value - deltas[name].value
        if limited.past(value, floors, base):
            limit = limited.limit(floors, base)
            found.append(f"{limited.words(value)} {'>' if limited.rises else '<'} {limit:.3g}")
    if "accuracy" in valid and deltas["accuracy"].high < 0:
        found.append(f"accuracy {deltas['accuracy'].value:+.2f} on general questions")
    return found


def verdict(
    values: dict[str, Estimate],
    deltas: dict[str, Estimate],
    floors: Floors,
    valid: Collection[str],
    trait: str = "persona_log_ratio",
    target: str | None = None,
    intent: int = 1,
    off_target: Collection[str] = (),
) -> Verdict:
    """Finite numbers, then coherence, then a trait shift, then off-target shifts smaller than the target's.

    Args:
        values: each signal at this stage.
        deltas: each signal's paired difference to base.
        floors: of coherence.
        valid: the signals that are valid for the model; the others are not looked at.
        trait: the signal that must rise.
        target: the signal that the off-target ones are held against; None: the trait.
        intent: +1 where the target is to rise, -1 where it is to fall.
        off_target: signals, in the target's unit, that must move less than the target.
    """
    broken = [name for name, entry in values.items() if name in valid and not math.isfinite(entry.value)]
    if broken:
        return Verdict("not finite", f"not finite: {', '.join(broken)}")
    worse = incoherences(values, deltas, floors, valid)
    if worse:
        return Verdict("incoherent", "; ".join(worse))
    shift = deltas[trait]
    shown = f"{trait} {shift.value:+.3f} [{shift.low:+.3f}, {shift.high:+.3f}] over base (n = {shift.n})"
    if trait not in valid:
        return Verdict("not valid", f"{shown}, but that readout is not valid for this model")
    if not shift.low > 0:
        return Verdict("no trait shift", f"{shown}: not above zero")
    meant = intent * deltas[target or trait].value
    if target and target in valid and meant <= 0:
        return Verdict(
            "off-target", f"{shown}, but {target} moved by {deltas[target].value:+.3f}, not as it is meant to"
        )
    larger = [name for name in off_target if name in valid and abs(deltas[name].value) >= meant]
    if larger:
        return Verdict("off-target", f"{shown}, but {', '.join(larger)} moved as much")
    least = coherence(values, deltas, floors, valid)
    return Verdict("holds", f"{shown}; coherence margin {least.margin:.2f} ({least.worst})")


def coh_cost(coherence: Estimate, trait: Estimate) -> dict[str, float] | None:
    """`|d coherence| / |d trait|` with both signed differences; None where the trait's interval includes zero."""
    if not trait.excludes_zero:
        return None
    return {
        "ratio": abs(coherence.value) / abs(trait.value),
        "d_coherence": coherence.value,
        "d_trait": trait.value,
    }
