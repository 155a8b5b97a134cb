"""The barrier: `lambda_r * mean_i relu(D_i - tau)` beside cross-entropy (SPEC section 6).

NLL and KL of a position depend on its final hidden state alone, so `position_losses` is all that
touches the vocabulary; it takes the reference's final hidden states, which stay the same all round.
Shape suffixes: N completion positions of the batch pooled, C completions, D hidden size, V vocabulary.
"""

from typing import Literal

import torch
from torch import Tensor

from heal.divergence import floored, kl_from_logprobs, row_blocks
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
    a float64 model). With a bfloat16 head the gradient stays within 3 % of the exact one, in norm, and
    losses within 5 %. The gradients cannot be differentiated again.

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
    """NLL and KL of each position, with their gradients in the hidden states, chunk by chunk.

    A chunk is what one matrix product with the head takes; inside it, what is done element by element goes
    over blocks of a few rows, which stay in the cache, and leaves its result where the logits stood.
    """

    @staticmethod
    def forward(ctx, h_ND, target_N, reference_ND, language_model, divergence):
        h_ND = h_ND.detach()  # nothing in here is for autograd, nor for hooks on the head that ask it
        chunk, dtype = language_model.head_positions, torch.promote_types(h_ND.dtype, torch.float32)
        nll_N, kl_N = h_ND.new_zeros(len(h_ND), dtype=dtype), h_ND.new_zeros(len(h_ND), dtype=dtype)
        grad_nll_ND = torch.zeros_like(h_ND, dtype=dtype)
        grad_kl_ND = torch.zeros_like(grad_nll_ND)
        for start in range(0, len(h_ND), chunk):
            part = slice(start, start + chunk)
            count = len(target_N[part])
            # Student and reference go through the head as one matrix, and so do both gradients.
            sides = [h_ND[part]] if divergence == "none" else [h_ND[part], reference_ND[part]]
            logits_MV = language_model.logits(torch.cat(sides))
            for rows in row_blocks(logits_MV[:count]):
                at = slice(start + rows.start, start + rows.stop)
                reference_NV = None if divergence == "none" else logits_MV[count:][rows]
                nll_N[at], kl_N[at] = _into_gradients(
                    logits_MV[rows], reference_NV, target_N[at], divergence, language_model
                )
            grad_MD = language_model.through_head(logits_MV)
            grad_nll_ND[part] = grad_MD[:count]
            if divergence != "none":
                grad_kl_ND[part] = grad_MD[count:]
        ctx.save_for_backward(grad_nll_ND, grad_kl_ND)
        ctx.dtype = h_ND.dtype
        return nll_N, kl_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, up_nll_N, up_kl_N):
        grad_nll_ND, grad_kl_ND = ctx.saved_tensors
        grad_ND = up_nll_N[:, None] * grad_nll_ND + up_kl_N[:, None] * grad_kl_ND
        return grad_ND.to(ctx.dtype), None, None, None, None, None


def _into_gradients(
    logits_NV: Tensor,
    reference_NV: Tensor | None,
    target_N: Tensor,
    divergence: Divergence,
    language_model: LanguageModel,
) -> tuple[Tensor, Tensor | float]:
    """NLL and KL of a block; its logits are overwritten by d NLL / d logit, the reference's by d KL / d logit."""
    slope_NV = language_model.softcap_slope(logits_NV)
    logp_NV = torch.log_softmax(logits_NV, dim=-1)
    p_NV = logp_NV.exp()
    nll_N = -logp_NV.gather(-1, target_N[:, None])[:, 0]
    kl_N: Tensor | float = 0.0
    if reference_NV is not None:
        logq_NV = torch.log_softmax(reference_NV, dim=-1)
        if divergence == "kl_rev":  # d KL(p||q) / d logit = p (log p - log q - KL)
            logp_NV, logq_NV = floored(logp_NV, logq_NV)
            kl_N = kl_from_logprobs(logp_NV, logq_NV)
            torch.mul(logp_NV.sub_(logq_NV).sub_(kl_N[:, None]), p_NV, out=reference_NV)
        else:  # d KL(q||p) / d logit = p - q
            kl_N = kl_from_logprobs(*floored(logq_NV, logp_NV))
            torch.sub(p_NV, logq_NV.exp_(), out=reference_NV)
    logits_NV.copy_(p_NV)  # d NLL / d logit = p - onehot
    logits_NV.scatter_add_(-1, target_N[:, None], logits_NV.new_full((len(logits_NV), 1), -1.0))
    if slope_NV is not None:
        logits_NV.mul_(slope_NV)
        if reference_NV is not None:
            reference_NV.mul_(slope_NV)
    return nll_N, kl_N


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
