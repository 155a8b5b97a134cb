"""What a calibration of a dose found: numbers alone, no model."""

from dataclasses import dataclass

from heal.dose.root import Outcome


@dataclass(frozen=True)
class PathDivergence:
    """Per-token `KL(on || off)` pooled over prompts and positions of the steered paths, nats.

    `p95_error` is the standard error of `p95` over prompts; 0 where it was not estimated.
    """

    c: float
    p50: float
    p95: float
    mean: float
    max: float
    n: int
    p95_error: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        c_star: the coefficient.
        value: p95 there, nats.
        target: what it should be.
        tolerance: accepted distance.
        outcome: how the search ended, see `Search`; `tolerance` is a hit, and `noise` one within the standard error.
        passes: rounds of decoding that it took.
        history: every evaluation in order.
        audit: the statistic at c_star on held-out prompts, if asked for.
        reference: what "off" was, `student` or `base`.
    """

    c_star: float
    value: float
    target: float
    tolerance: float
    outcome: Outcome
    passes: int
    history: tuple[PathDivergence, ...]
    audit: PathDivergence | None
    reference: str

    @property
    def on_target(self) -> bool:
        return self.outcome in ("tolerance", "noise")

    @property
    def miss(self) -> str:
        """In words, how a search that is not on target ended."""
        which = "most" if self.value < self.target else "least"
        reached = f", and this is the {which} that any coefficient reached" if self.outcome == "unreachable" else ""
        return (
            f"p95 KL {self.value:.2f} nats at c = {self.c_star:.3f} against {self.target:g} asked; the search ended "
            f"on '{self.outcome}'{reached}"
        )
