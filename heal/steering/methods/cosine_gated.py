"""cosine_gated: `h + c u max(0, |cos(h, u)| - tau)`, `u = v / |v|`, `v = mean(h+) - mean(h-)`.

Positions that have nothing to do with the direction are left alone, and those that have are shifted the more, whether
they lie along it or against it. `tau` is `steer.gate`. With `centre`, the cosine is taken from the mean of both sets:
activations share a large mean, and without it that mean decides how far most gates are open.

After conditional activation steering (arXiv 2409.05907), whose gate is a condition of its own.
"""

from torch import Tensor

from heal.steering.method import Method, State, contrast, cosine, unit


def fit(positive_PD: Tensor, negative_PD: Tensor, gate: float) -> State:
    """`v`, of length 1, and the gate's threshold."""
    v_D = unit(contrast(positive_PD, negative_PD)).float()
    return {"v": v_D, "gate": v_D.new_tensor(gate)}


def apply(h_BTD: Tensor, state: State, c_B11: Tensor) -> Tensor:
    """Shifts each position by as much as its cosine exceeds the threshold."""
    excess_BT1 = (cosine(h_BTD, state["v"]).abs() - state["gate"]).clamp_min(0)
    return h_BTD + c_B11 * excess_BT1 * state["v"]


METHOD = Method("cosine_gated", fit, apply, tensors=("gate",), settings=("gate", "centre"))
