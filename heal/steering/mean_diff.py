"""mean_diff: `v_l = mean(h_l | positive) - mean(h_l | negative)`.

Contrastive activation addition (arXiv 2312.06681); ActAdd (arXiv 2308.10248).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

PairActivations = tuple[dict[int, Tensor], dict[int, Tensor]]


def mean_diff(batches: Iterable[PairActivations]) -> dict[int, Tensor]:
    """Directions from a stream of batches, accumulated in float64 and returned in float32.

    Args:
        batches: (positive, negative) activations by block, each `[B, D]`.

    Returns:
        block -> `[D]`, float32.
    """
    sums: dict[int, Tensor] = {}
    count = 0
    for positive, negative in batches:
        for layer in positive:
            difference_D = (positive[layer].cpu().double() - negative[layer].cpu().double()).sum(0)
            sums[layer] = sums.get(layer, torch.zeros_like(difference_D)) + difference_D
        count += len(next(iter(positive.values())))
    if not count:
        raise ValueError("mean_diff: no activations")
    return {layer: (total / count).float() for layer, total in sums.items()}
