"""sspace_damp_amp: in the basis of sspace, `x_i <- x_i exp(c d_i)`, the exponent clamped to [-4, 4].

Instead of adding the contrast, modes that the positive persona uses more are amplified and those that it uses less
are damped, as if the singular values of the weight had changed. No mode changes its sign, and where nothing is said
in a mode, nothing is added. Scaling `x` or `(y - b) U` is the same, so `sqrt(S)` only shapes `d`.

A singular vector has no sign, but more and less depend on one: each is turned so that the mean of both sets lies on
its positive side, and `d_i > 0` says that the positive persona goes further there.
"""

import torch
from torch import Tensor

from heal.steering.method import Method, State
from heal.steering.methods.sspace import coordinates

_MOST = 4.0  # e^4: 55 times as loud


def fit(positive_PD: Tensor, negative_PD: Tensor, gram_DD: Tensor, bias_D: Tensor | None) -> State:
    """`d`, lifted (`v`) and itself, the modes `[D, K]` and the bias."""
    u_DK, root_K, d_K, b_D = coordinates(positive_PD, negative_PD, gram_DD, bias_D)
    mean_D = (positive_PD.double().mean(0) + negative_PD.double().mean(0)) / 2
    sign_K = torch.where((mean_D - b_D) @ u_DK < 0, -1.0, 1.0)
    u_DK, d_K = u_DK * sign_K, d_K * sign_K
    state = {"v": u_DK @ (root_K * d_K), "d": d_K, "modes": u_DK, "bias": b_D}
    return {name: tensor.float() for name, tensor in state.items()}


def apply(y_BTD: Tensor, state: State, c_B11: Tensor) -> Tensor:
    """Scales each mode of the output."""
    said_BTK = (y_BTD - state["bias"]) @ state["modes"]
    return y_BTD + (said_BTK * (c_B11 * state["d"]).clamp(-_MOST, _MOST).expm1()) @ state["modes"].T


METHOD = Method("sspace_damp_amp", fit, apply, tensors=("d", "modes", "bias"), site="writer", basis="site")
