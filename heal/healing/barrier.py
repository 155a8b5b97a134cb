"""The barrier: `lambda_r * mean_i relu(D_i - tau)` beside cross-entropy (SPEC section 6).

NLL and KL of a position depend on its final hidden state alone, so `position_losses` is all that
touches the vocabulary; it takes the reference's final hidden states, which stay the same all round.
Shape suffixes: N completion positions of the batch pooled, C completions, D hidden size, V vocabulary.
"""

from typing import Literal

import torch
from torch import Tensor

from heal.divergence import floored, kl_from_logprobs
from heal.models.language_model import LanguageModel

Divergence = Literal["none", "kl_fwd", "kl_rev"]
Aggregate = Literal["mean", "rmse", "p95", "max"]

RMSE_EPS = 1e-6  # nats


def position_losses(
    language_model: LanguageModel, h_ND: Tensor, target_N: Tensor, reference_ND: Tensor | None, divergence: Divergence
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and divergence per position, float32, both differentiable in `h_ND`.

    The frozen head is applied to chunks of positions, as many as fit the model's `batching.head_bytes`,
    and each chunk's gradients in its hidden states are computed while it goes forward: no `[N, V]`
    tensor outlives its chunk. The head multiplies in the model's dtype, the rest is float32 (float64 for
    a float64 model). The gradients cannot be differentiated again.

    Args:
        language_model: whose frozen head is used.
        h_ND: the student's final hidden states.
        target_N: the sampled token ids.
        reference_ND: the reference's final hidden states; may be None when divergence is `none`.
        divergence: `kl_fwd` is KL(reference || student), `kl_rev` KL(student || reference).

    Returns:
        `nll_N` and `kl_N`, nats; `kl_N` is zero when divergence is `none`.
    """
    if divergence != "none" and reference_ND is None:
        raise ValueError(f"position_losses: divergence {divergence} needs the reference's hidden states")
    return _PositionLosses.apply(h_ND, target_N, reference_ND, language_model, divergence)


class _PositionLosses(torch.autograd.Function):
    """NLL and KL of each position, with their gradients in the hidden states, chunk by chunk."""

    @staticmethod
    def forward(ctx, h_ND, target_N, reference_ND, language_model, divergence):
        chunk, dtype = language_model.head_positions, torch.promote_types(h_ND.dtype, torch.float32)
        nll_N, kl_N = h_ND.new_zeros(len(h_ND), dtype=dtype), h_ND.new_zeros(len(h_ND), dtype=dtype)
        grad_nll_ND = torch.zeros_like(h_ND, dtype=dtype)
        grad_kl_ND = torch.zeros_like(grad_nll_ND)
        for start in range(0, len(h_ND), chunk):
            part = slice(start, start + chunk)
            logits_NV = language_model.logits(h_ND[part])
            logp_NV = torch.log_softmax(logits_NV, dim=-1)
            nll_N[part] = -logp_NV.gather(-1, target_N[part, None])[:, 0]
            p_NV = logp_NV.exp()
            if divergence != "none":
                logq_NV = torch.log_softmax(language_model.logits(reference_ND[part]), dim=-1)
                if divergence == "kl_rev":  # d KL(p||q) / d logit = p (log p - log q - KL)
                    logp_NV, logq_NV = floored(logp_NV, logq_NV)
                    kl_N[part] = kl_from_logprobs(logp_NV, logq_NV)
                    in_logits_NV = (logp_NV - logq_NV).sub_(kl_N[part, None]).mul_(p_NV)
                else:  # d KL(q||p) / d logit = p - q
                    kl_N[part] = kl_from_logprobs(*floored(logq_NV, logp_NV))
                    in_logits_NV = p_NV - logq_NV.exp_()
                grad_kl_ND[part] = language_model.head_gradient(in_logits_NV, logits_NV)
            p_NV.scatter_add_(-1, target_N[part, None], p_NV.new_full((len(p_NV), 1), -1.0))
            grad_nll_ND[part] = language_model.head_gradient(p_NV, logits_NV)  # d NLL / d logit = p - onehot
        ctx.save_for_backward(grad_nll_ND, grad_kl_ND)
        ctx.dtype = h_ND.dtype
        return nll_N, kl_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, up_nll_N, up_kl_N):
        grad_nll_ND, grad_kl_ND = ctx.saved_tensors
        grad_ND = up_nll_N[:, None] * grad_nll_ND + up_kl_N[:, None] * grad_kl_ND
        return grad_ND.to(ctx.dtype), None, None, None, None, None


def aggregate(kl_N: Tensor, completion_N: Tensor, completions: int, how: Aggregate) -> Tensor:
    """`D_i` of each completion, `[C]`, nats, float32.

    Args:
        kl_N: divergence per position.
        completion_N: which completion each position belongs to, 0 to C - 1; every one has positions.
        completions: C.
        how: `rmse` is `sqrt(mean(KL^2) + eps^2) - eps`: exactly 0 with a finite gradient where every KL is 0.
    """
    kl_N = kl_N.float()
    if how in ("mean", "rmse"):
        values_N = kl_N if how == "mean" else kl_N.square()
        total_C = kl_N.new_zeros(completions).index_add(0, completion_N, values_N)
        count_C = kl_N.new_zeros(completions).index_add(0, completion_N, torch.ones_like(kl_N))
        mean_C = total_C / count_C
        return mean_C if how == "mean" else torch.sqrt(mean_C + RMSE_EPS**2) - RMSE_EPS
    parts = [kl_N[completion_N == index] for index in range(completions)]
    if how == "max":
        return torch.stack([part.max() for part in parts])
    return torch.stack([torch.quantile(part, 0.95) for part in parts])


def lambda_for_round(strength: float, power: float, round_index: int) -> float:
    """`lambda_r = lambda * (1 + r)^power`, r counted from 0."""
    return strength * (1 + round_index) ** power
