"""mean_diff: `v_l = mean(h_l | positive) - mean(h_l | negative)`.

Contrastive activation addition (arXiv 2312.06681); ActAdd (arXiv 2308.10248).
"""

from torch import Tensor

Activations = dict[int, Tensor]


def mean_diff(positive: Activations, negative: Activations) -> dict[int, Tensor]:
    """Directions, averaged in float64 and returned in float32.

    Args:
        positive: activations by block under the positive persona, each `[P, D]`, pair by pair.
        negative: the same under the negative one.

    Returns:
        block -> `[D]`, float32.
    """
    return {
        layer: (h_PD.double().mean(0) - negative[layer].double().mean(0)).float() for layer, h_PD in positive.items()
    }
