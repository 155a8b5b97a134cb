"""angular: `h - P h + |P h| (cos(c) b1 + sin(c) b2)`, `P` the projection onto the plane of `b1` and `b2`.

`b1` is the direction of the mean contrast, `b2` the first principal component of the unit paired differences made
orthogonal to `b1`. Within the plane every position is turned to one and the same angle `c`, in radians, and keeps its
norm, in the plane and altogether: 0 is straight along the trait, pi straight against it. Angles from 0 to pi are the
half of the plane on the side of `b2`, which is therefore turned to where the mean of both sets lies.

So `c` is a direction and not a size. No angle is the identity; the trait is strongest at `c = 0` and wanes as `c`
grows towards the angle that activations have anyway, in each block one of its own between 0 and pi. On the way there
calibration looks for its dose: the angle, going up from 0, at which KL has fallen to the target. A dose below 1 is a
smaller angle and shifts more, not less. A negative coefficient is the same for the opposite trait: the angle is counted
from pi. With `centre`, what is turned is `h` minus the mean of both sets; activations lie all around it, and the sign
of `b2` is that of most pairs.

Angular steering (arXiv 2510.26243).
"""

import math

import torch
from torch import Tensor

from heal.steering.fitting import first_component
from heal.steering.method import Method, NoDirection, State, along, contrast, unit

_SAME = 1e-6  # length of the second axis beside the first; less is rounding
_NONE = 1e-4  # part of the mean along the second axis, of the size of the activations; less may be rounding


def fit(positive_PD: Tensor, negative_PD: Tensor) -> State:
    """The two axes of the plane, orthonormal: `v` (b1) and `b2`, the mean of both sets on its positive side."""
    difference_PD = positive_PD.double() - negative_PD.double()
    b1_D = unit(contrast(positive_PD, negative_PD))
    b2_D = first_component(difference_PD / difference_PD.norm(dim=1, keepdim=True).clamp_min(1e-300))
    b2_D = b2_D - (b2_D @ b1_D) * b1_D
    if b2_D.norm() < _SAME:
        raise NoDirection("the pairs differ along a single line, which makes no plane to turn in")
    b2_D = unit(b2_D)
    mean_D = (positive_PD.double().mean(0) + negative_PD.double().mean(0)) / 2
    size = torch.cat([positive_PD, negative_PD]).double().norm(dim=1).mean()
    if mean_D @ b2_D < -_NONE * size:
        b2_D = -b2_D
    return {"v": b1_D.float(), "b2": b2_D.float()}


def apply(h_BTD: Tensor, state: State, c_B11: Tensor) -> Tensor:
    """Sets the angle within the plane; a negative one (and -0.0) is counted from straight against the trait."""
    toward_B11 = torch.copysign(torch.ones_like(c_B11), c_B11)
    x_BT1, y_BT1 = along(h_BTD, state["v"]), along(h_BTD, state["b2"])
    norm_BT1 = (x_BT1.square() + y_BT1.square()).sqrt()
    return (
        h_BTD
        + (norm_BT1 * toward_B11 * c_B11.cos() - x_BT1) * state["v"]
        + (norm_BT1 * toward_B11 * c_B11.sin() - y_BT1) * state["b2"]
    )  # fmt: skip


METHOD = Method(
    "angular", fit, apply, tensors=("b2",), settings=("centre",), neutral=None, largest=math.pi, falling=True
)
