"""Full-vocabulary KL per position: the one definition that dose and barrier share."""

import torch
from torch import Tensor

# Probabilities below e^-80 count as e^-80: an excluded token (logit -inf) then stays finite, adds
# nothing where both exclude it, and nothing overflows in float32.
FLOOR = -80.0


def kl_divergence(logits_p_NV: Tensor, logits_q_NV: Tensor) -> Tensor:
    """`KL(p || q)` per position, nats, float32, shape `[N]`; differentiable in both.

    Args:
        logits_p_NV: logits of p, `[N, V]`.
        logits_q_NV: logits of q, `[N, V]`.
    """
    return kl_from_logprobs(log_probabilities(logits_p_NV), log_probabilities(logits_q_NV))


def log_probabilities(logits_NV: Tensor) -> Tensor:
    """Float32 log-probabilities `[N, V]`, none below the floor."""
    return torch.log_softmax(logits_NV.float(), dim=-1).clamp(min=FLOOR)


def kl_from_logprobs(logp_NV: Tensor, logq_NV: Tensor) -> Tensor:
    """`sum_v p (expm1(d) - d)` with `d = log q - log p`, nats, `[N]` (SPEC section 6).

    Each term is non-negative, so the sum never is below zero, and near zero nothing cancels. Equal
    log-probabilities give exactly 0.
    """
    d_NV = logq_NV - logp_NV
    return (logp_NV.exp() * (torch.expm1(d_NV) - d_NV)).sum(-1)
