"""sspace: in the basis of a writing Linear's weight, `x <- x + c |cos(x, d)| d`, `x = (y - b) U / sqrt(S)`.

`W = U S V^T` is the weight of a Linear that writes to the residual stream (`down_proj`, `o_proj`), `y` its output,
`b` its bias. Its modes `U` are what this Linear can say, and dividing by `sqrt(S)` gives each of them a voice: quiet
modes count as much as loud ones. `d` is the unit mean contrast of `x`. The shift is gated by how much a position has
to do with `d`, and lifted back with `sqrt(S) U^T`; what of `y` lies outside of the modes stays as it is. Modes with
`S` under a millionth of the largest are left out.

After AntiPaSTO. heal/steering/sites.py says which weight is meant when adapters are on it.
"""

from torch import Tensor

from heal.steering.fitting import modes
from heal.steering.method import Method, State, contrast, cosine, unit


def coordinates(
    positive_PD: Tensor, negative_PD: Tensor, gram_DD: Tensor, bias_D: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The basis and the contrast in it, float64: `U [D, K]`, `sqrt(S) [K]`, `d [K]`, and the bias `[D]` (0: none)."""
    u_DK, s_K = modes(gram_DD)
    root_K = s_K.sqrt()
    d_K = unit(contrast(positive_PD, negative_PD) @ u_DK / root_K)
    return u_DK, root_K, d_K, u_DK.new_zeros(len(u_DK)) if bias_D is None else bias_D.double()


def fit(positive_PD: Tensor, negative_PD: Tensor, gram_DD: Tensor, bias_D: Tensor | None) -> State:
    """`d` as a shift of the output (`v`), `d` itself, what turns an output into `x`, and the bias."""
    u_DK, root_K, d_K, b_D = coordinates(positive_PD, negative_PD, gram_DD, bias_D)
    state = {"v": u_DK @ (root_K * d_K), "d": d_K, "reads": u_DK / root_K, "bias": b_D}
    return {name: tensor.float() for name, tensor in state.items()}


def apply(y_BTD: Tensor, state: State, c_B11: Tensor) -> Tensor:
    """Shifts each position along `d` by its cosine to it."""
    x_BTK = (y_BTD - state["bias"]) @ state["reads"]
    return y_BTD + c_B11 * cosine(x_BTK, state["d"]).abs() * state["v"]


METHOD = Method("sspace", fit, apply, tensors=("d", "reads", "bias"), site="writer", basis="site")
