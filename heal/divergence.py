"""Full-vocabulary KL per position: the one definition that dose and barrier share."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Probabilities of p below e^-80 count as e^-80: a token that p excludes (logit -inf) then adds what q
# has there, nothing where q excludes it as well, and no term overflows in float32.
_FLOOR = -80.0

_CACHED = 2**18  # elements of a block


def kl_divergence(logits_p_NV: Tensor, logits_q_NV: Tensor) -> Tensor:
    """`KL(p || q)` per position, nats, float32 at least, shape `[N]`; differentiable in both.

    It is inf where q excludes a token that p does not.

    Args:
        logits_p_NV: logits of p, `[N, V]`.
        logits_q_NV: logits of q, `[N, V]`.
    """
    if not len(logits_p_NV):
        return logits_p_NV.new_zeros(0)
    dtype = torch.promote_types(logits_p_NV.dtype, torch.float32)
    kl_parts = []
    for rows in row_blocks(logits_p_NV):
        logp_NV = torch.log_softmax(logits_p_NV[rows].to(dtype), dim=-1)
        logq_NV = torch.log_softmax(logits_q_NV[rows].to(dtype), dim=-1)
        kl_parts.append(kl_from_logprobs(*floored(logp_NV, logq_NV)))
    return torch.cat(kl_parts)


def row_blocks(logits_NV: Tensor) -> Iterator[slice]:
    """Slices of rows: few enough that what is done element by element stays in a CPU's cache; all of them on a GPU.

    A GPU would start every kernel once for each block.
    """
    on_cpu = logits_NV.device.type == "cpu"
    rows = max(1, _CACHED // logits_NV.shape[-1]) if on_cpu else len(logits_NV)
    for start in range(0, len(logits_NV), rows):
        yield slice(start, min(start + rows, len(logits_NV)))


def floored(logp_NV: Tensor, logq_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Both log-probabilities `[N, V]`, with the floor where p is below it."""
    # Elsewhere, to ask would be to wait for the device.
    if logp_NV.device.type == "cpu" and logp_NV.numel() and logp_NV.amin() >= _FLOOR:
        return logp_NV, logq_NV
    below_NV = logp_NV < _FLOOR
    return logp_NV.clamp(min=_FLOOR), torch.where(below_NV, logq_NV.clamp(min=_FLOOR), logq_NV)


def kl_from_logprobs(logp_NV: Tensor, logq_NV: Tensor) -> Tensor:
    """`sum_v p (expm1(d) - d)` with `d = log q - log p`, nats, `[N]`, of `floored` log-probabilities.

    Each term is non-negative, so the sum never is below zero, and near zero nothing cancels. Equal
    log-probabilities give exactly 0 (docs/method.md, Healing).
    """
    d_NV = logq_NV - logp_NV
    return (logp_NV.exp() * (torch.expm1(d_NV) - d_NV)).sum(-1)
