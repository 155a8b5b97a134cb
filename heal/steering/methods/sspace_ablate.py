"""sspace_ablate: in the basis of sspace, `x <- x - (x . d) d + c d`.

The component along the contrast is replaced by the same amount everywhere; `c = 0` removes it and is not the
identity. Back in the output `y` this is an oblique projection, `y + (c - (y - b) . r) v` with `r = U (d / sqrt(S))`
and `v = U (sqrt(S) d)`, so the basis itself need not be kept.
"""

from torch import Tensor

from heal.steering.method import Method, State, along
from heal.steering.methods.sspace import coordinates


def fit(positive_PD: Tensor, negative_PD: Tensor, gram_DD: Tensor, bias_D: Tensor | None) -> State:
    """What reads the component, what writes it (`v`), and the bias, each `[D]`."""
    u_DK, root_K, d_K, b_D = coordinates(positive_PD, negative_PD, gram_DD, bias_D)
    state = {"v": u_DK @ (root_K * d_K), "reads": u_DK @ (d_K / root_K), "bias": b_D}
    return {name: tensor.float() for name, tensor in state.items()}


def apply(y_BTD: Tensor, state: State, c_B11: Tensor) -> Tensor:
    """Sets the component along `d` to `c`."""
    return y_BTD + (c_B11 - along(y_BTD - state["bias"], state["reads"])) * state["v"]


METHOD = Method("sspace_ablate", fit, apply, tensors=("reads", "bias"), site="writer", basis="site", neutral=None)
