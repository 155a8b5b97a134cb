"""linear_act: `(1 - c) h + c T(h)`, `T(x) = w x + b` for each coordinate by itself.

`T` carries the negative persona's distribution of a coordinate to the positive one's: in one dimension the optimal
map pairs the samples in their order, and `w`, `b` are the least squares line through the sorted pairs (so `w >= 0`).
It moves the spread of a coordinate as well as its mean. A coordinate that is constant under the negative persona has
no slope of its own and is translated (`w = 1`). `c = 1` is the whole map; larger coefficients go on along it.

Linear-AcT (Rodriguez et al., openreview l2zFn6TIQi), one map for each block and no support mask.
"""

import torch
from torch import Tensor

from heal.steering.method import Method, State, contrast

_CONSTANT = 1e-12  # variance in units of the mean square; less is rounding


def fit(positive_PD: Tensor, negative_PD: Tensor) -> State:
    """The mean contrast `v`, the slopes and the offsets, each `[D]`."""
    source_PD, target_PD = negative_PD.double().sort(0).values, positive_PD.double().sort(0).values
    source_D, target_D = source_PD.mean(0), target_PD.mean(0)
    variance_D = (source_PD - source_D).square().mean(0)
    covariance_D = ((source_PD - source_D) * (target_PD - target_D)).mean(0)
    constant_D = variance_D <= _CONSTANT * source_PD.square().mean(0)
    slope_D = torch.where(constant_D, 1.0, covariance_D / torch.where(constant_D, 1.0, variance_D))
    offset_D = target_D - slope_D * source_D
    return {"v": contrast(positive_PD, negative_PD).float(), "slope": slope_D.float(), "offset": offset_D.float()}


def apply(h_BTD: Tensor, state: State, c_B11: Tensor) -> Tensor:
    """Goes the share `c` of the way to `T(h)`."""
    return (1 - c_B11) * h_BTD + c_B11 * (state["slope"] * h_BTD + state["offset"])


METHOD = Method("linear_act", fit, apply, tensors=("slope", "offset"), origin_free=True)
