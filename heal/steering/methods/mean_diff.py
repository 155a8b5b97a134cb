"""mean_diff: `h + c v`, `v = mean(h+) - mean(h-)`.

What the personas differ in on average is the trait; what varies from context to context averages out. The shift is
the same at every position, whatever is there. With `normalize`, `v` has length 1 at every block: blocks then count
alike, while otherwise the deeper ones, whose activations are larger, count more.

There is no centred variant: subtracting the mean of both sets from the activations cancels in their difference, and
mean-centring (the mean of the positive set minus that of a general set, arXiv 2312.03813) with both sets as the
general one is `v / 2`, which the dose makes up for.

Contrastive activation addition (arXiv 2312.06681), which averages over pairs; ActAdd (arXiv 2308.10248), one pair.
"""

from torch import Tensor

from heal.steering.method import Method, State, contrast, unit


def fit(positive_PD: Tensor, negative_PD: Tensor, normalize: bool) -> State:
    """`v`, averaged in float64."""
    v_D = contrast(positive_PD, negative_PD)
    return {"v": (unit(v_D) if normalize else v_D).float()}


def apply(h_BTD: Tensor, state: State, c_B11: Tensor) -> Tensor:
    """Adds the shift in the model's own dtype, as anything else that holds it as a bias would."""
    return h_BTD + (c_B11 * state["v"]).to(h_BTD.dtype)


METHOD = Method("mean_diff", fit, apply, settings=("normalize",), origin_free=True, in_float32=False)
