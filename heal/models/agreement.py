"""How near two models' next-token distributions are, in units that mean the same for any model, dtype and device.

A logit difference depends on the scale of the logits, on a shift that all of them share and on the one token of the
vocabulary where it is largest. KL and the likeliest token do not.

Shape suffixes: T positions, N some of them, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_POSITIONS = 64  # whose distributions are held at once, in float64


@dataclass(frozen=True)
class Agreement:
    """Of one model with a reference, over the positions of some rows.

    Attributes:
        p50, p95, max: quantiles of KL(reference || model), nats per token; infinite where a logit is not finite.
        top1: fraction of positions whose likeliest token is a likeliest one of the reference.
    """

    p50: float
    p95: float
    max: float
    top1: float

    def __str__(self) -> str:
        return f"KL p50 {self.p50:.1e}, p95 {self.p95:.1e}, max {self.max:.1e} nats; top-1 {self.top1:.1%}"


def agreement(reference: Sequence[Tensor], other: Sequence[Tensor]) -> Agreement:
    """Of `other` with `reference`: logits `[T, V]` of the same rows."""
    kl_N = torch.cat([kl(ours_TV, theirs_TV) for ours_TV, theirs_TV in zip(reference, other, strict=True)])
    same = torch.cat([_same_top(ours_TV, theirs_TV) for ours_TV, theirs_TV in zip(reference, other, strict=True)])
    if not kl_N.isfinite().all():
        return Agreement(math.inf, math.inf, math.inf, float(same.double().mean()))
    p50, p95 = torch.quantile(kl_N, torch.tensor([0.5, 0.95], dtype=kl_N.dtype)).tolist()
    return Agreement(p50, p95, float(kl_N.max()), float(same.double().mean()))


def kl(reference_NV: Tensor, other_NV: Tensor) -> Tensor:
    """KL(reference || other) of each position, `[N]`, float64, at least 0; not a number where a logit is none."""
    return torch.cat([_kl(*part) for part in _parts(reference_NV, other_NV)])


def _kl(reference_NV: Tensor, other_NV: Tensor) -> Tensor:
    p_NV, q_NV = (logits_NV.double().log_softmax(-1) for logits_NV in (reference_NV, other_NV))
    terms_NV = p_NV.exp() * (p_NV - q_NV)
    return terms_NV.masked_fill(p_NV == -math.inf, 0.0).sum(-1).clamp_min(0.0)


def _same_top(reference_NV: Tensor, other_NV: Tensor) -> Tensor:
    chosen_N1 = other_NV.argmax(-1, keepdim=True)
    return reference_NV.gather(-1, chosen_N1).squeeze(-1) == reference_NV.amax(-1)


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(_POSITIONS) for tensor in tensors), strict=True)
