"""Full-vocabulary KL per position: the one definition that dose and barrier share."""

import torch
from torch import Tensor


def kl_divergence(logits_p_NV: Tensor, logits_q_NV: Tensor) -> Tensor:
    """`KL(p || q)` per position, nats, float32, shape `[N]`.

    Computed as `sum_v p (expm1(d) - d)` with `d = log q - log p` (SPEC section 6): each term is
    non-negative, so the sum never is below zero, and near zero nothing cancels. Equal logits give
    exactly 0. Tokens that p excludes (logit -inf) contribute q's mass there, as the sum demands.

    Args:
        logits_p_NV: logits of p, `[N, V]`; differentiable.
        logits_q_NV: logits of q, `[N, V]`; differentiable.
    """
    logp_NV = torch.log_softmax(logits_p_NV.float(), dim=-1)
    logq_NV = torch.log_softmax(logits_q_NV.float(), dim=-1)
    p_NV = logp_NV.exp()
    excluded_NV = logp_NV == -torch.inf
    d_NV = torch.where(excluded_NV, 0.0, logq_NV - logp_NV)
    # p * expm1(d) = q - p: written so where p is tiny and d large, where expm1 would overflow.
    term_NV = torch.where(
        d_NV > 30.0, logq_NV.exp() - p_NV - p_NV * d_NV, p_NV * (torch.expm1(d_NV.clamp(max=30.0)) - d_NV)
    )
    return torch.where(excluded_NV, logq_NV.exp(), term_NV).sum(-1)
