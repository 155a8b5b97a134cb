"""The divergences that the barrier can hold: one file each, named as `heal.barrier.divergence` calls it.

A file exports `DIVERGENCE`, and its docstring's first line is what `--help` says of it. Shape suffixes: N positions,
V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from heal import choices


@dataclass(frozen=True)
class Divergence:
    """How far the student is from the reference at one position.

    Attributes:
        name: that of its file.
        label: its formula as the report shows it; `{reference}` stands for the name of the reference.
        per_position: the definition: `(student_NV, reference_NV) -> d_N` from logits, nats, float32 at least,
            differentiable in the student's.
        into_gradients: the same and its gradient by hand, in place: `(logp_NV, p_NV, reference_NV) -> d_N` takes the
            student's log-probabilities (which it may overwrite) and probabilities (which it must not) and the
            reference's logits, over which it writes `d D / d logit` of the student. None: autograd of `per_position`.
        needs_reference: False for none at all: there is nothing to compute then.
    """

    name: str
    label: str
    per_position: Callable[[Tensor, Tensor], Tensor]
    into_gradients: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    needs_reference: bool = True


def divergence_named(name: str) -> Divergence:
    """The divergence in the file of that name; UserError when there is none, naming the nearest."""
    divergence = choices.load(__name__, name, "DIVERGENCE")
    assert isinstance(divergence, Divergence)
    return divergence
