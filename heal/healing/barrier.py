"""The barrier: `lambda_r * mean_i relu(D_i - tau)` beside cross-entropy (SPEC section 6).

NLL and KL of a position depend on its final hidden state alone, so `position_losses` is all that
touches the vocabulary; it takes the reference's final hidden states, which stay the same all round.
Shape suffixes: N completion positions of the batch pooled, C completions, D hidden size, V vocabulary.
"""

from typing import Literal

import torch
from torch import Tensor

from heal.divergence import kl_divergence
from heal.models.language_model import LanguageModel

Divergence = Literal["none", "kl_fwd", "kl_rev"]
Aggregate = Literal["mean", "rmse", "p95", "max"]

RMSE_EPS = 1e-6  # nats


def position_losses(
    language_model: LanguageModel, h_ND: Tensor, target_N: Tensor, reference_ND: Tensor | None, divergence: Divergence
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and divergence per position, float32, both differentiable in `h_ND`.

    Args:
        language_model: whose frozen head is used.
        h_ND: the student's final hidden states.
        target_N: the sampled token ids.
        reference_ND: the reference's final hidden states; may be None when divergence is `none`.
        divergence: `kl_fwd` is KL(reference || student), `kl_rev` KL(student || reference).

    Returns:
        `nll_N` and `kl_N`, nats; `kl_N` is zero when divergence is `none`.
    """
    logits_NV = language_model.logits(h_ND)
    nll_N = torch.nn.functional.cross_entropy(logits_NV, target_N, reduction="none")
    if divergence == "none":
        return nll_N, torch.zeros_like(nll_N)
    if reference_ND is None:
        raise ValueError(f"position_losses: divergence {divergence} needs the reference's hidden states")
    with torch.no_grad():
        reference_NV = language_model.logits(reference_ND)
    if divergence == "kl_rev":
        return nll_N, kl_divergence(logits_NV, reference_NV)
    return nll_N, kl_divergence(reference_NV, logits_NV)


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
