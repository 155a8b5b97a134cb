"""Whether a round worked, in the order that SPEC section 8 gives: a ratio alone would call a wreck a win."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from heal.evaluation.stats import Estimate


@dataclass(frozen=True)
class Floors:
    """Absolute limits of coherence."""

    min_p_ans_any: float
    max_repetition_share: float
    max_tail_perplexity: float


@dataclass(frozen=True)
class Verdict:
    """The first check that failed, or `holds`.

    Attributes:
        label: `not finite`, `incoherent`, `no trait shift`, `off-target` or `holds`.
        reason: one line with the numbers it rests on.
    """

    label: str
    reason: str

    @property
    def holds(self) -> bool:
        return self.label == "holds"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def incoherences(values: dict[str, Estimate], deltas: dict[str, Estimate], floors: Floors) -> list[str]:
    """Every coherence signal that is past its floor, worst news in words; empty when coherent.

    Accuracy has no absolute floor: it fails when the interval of its change from base lies below zero.
    """
    found = []
    if values["p_ans_any"].value < floors.min_p_ans_any:
        found.append(f"p_ans_any {values['p_ans_any'].value:.2f} < {floors.min_p_ans_any:g}")
    if values["repetition_share"].value > floors.max_repetition_share:
        found.append(f"looping answers {values['repetition_share'].value:.0%} > {floors.max_repetition_share:.0%}")
    if values["tail_perplexity"].value > floors.max_tail_perplexity:
        found.append(f"tail perplexity {values['tail_perplexity'].value:.1f} > {floors.max_tail_perplexity:g}")
    if deltas["accuracy"].high < 0:
        found.append(f"accuracy {deltas['accuracy'].value:+.2f} on general questions")
    return found


def verdict(
    values: dict[str, Estimate],
    deltas: dict[str, Estimate],
    floors: Floors,
    trait: str = "persona_log_ratio",
    off_target: tuple[str, ...] = (),
) -> Verdict:
    """Finite numbers, then coherence, then a trait shift, then off-target shifts smaller than the target's.

    Args:
        values: each signal at this stage.
        deltas: each signal's paired difference to base.
        floors: of coherence.
        trait: the signal that must rise.
        off_target: signals, in the trait's unit, that must move less than the trait.
    """
    broken = [name for name, entry in values.items() if not math.isfinite(entry.value)]
    if broken:
        return Verdict("not finite", f"not finite: {', '.join(broken)}")
    worse = incoherences(values, deltas, floors)
    if worse:
        return Verdict("incoherent", "; ".join(worse))
    shift = deltas[trait]
    shown = f"{trait} {shift.value:+.3f} [{shift.low:+.3f}, {shift.high:+.3f}] over base (n = {shift.n})"
    if not shift.low > 0:
        return Verdict("no trait shift", f"{shown}: not above zero")
    larger = [name for name in off_target if abs(deltas[name].value) >= abs(shift.value)]
    if larger:
        return Verdict("off-target", f"{shown}, but {', '.join(larger)} moved as much")
    return Verdict("holds", f"{shown}; coherence p_ans_any {values['p_ans_any'].value:.2f}")


def coh_cost(coherence: Estimate, trait: Estimate) -> dict[str, float] | None:
    """`|d coherence| / |d trait|` with both signed differences; None where the trait's interval includes zero."""
    if not trait.excludes_zero:
        return None
    return {
        "ratio": abs(coherence.value) / abs(trait.value),
        "d_coherence": coherence.value,
        "d_trait": trait.value,
    }
