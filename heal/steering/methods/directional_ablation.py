"""directional_ablation: `h - (h . u) u + c u`, `u = v / |v|`, `v = mean(h+) - mean(h-)`.

Whatever a position says along the direction is replaced by the same amount everywhere: `c = 0` removes it, and the
identity is not a coefficient but leaving the method off. So KL does not vanish with `c`: it is least near the
component that activations have anyway. Calibration takes the first coefficient, going up from 0, at which KL rises to
the target, or 0 where removing the component is on target by itself. With `centre`, the component is measured from
the mean of both sets, so that `c = 0` puts every position on the midpoint of the personas.

Refusal is mediated by a single direction (arXiv 2406.11717).
"""

from torch import Tensor

from heal.steering.method import Method, State, along, contrast, unit


def fit(positive_PD: Tensor, negative_PD: Tensor) -> State:
    """`v`, of length 1."""
    return {"v": unit(contrast(positive_PD, negative_PD)).float()}


def apply(h_BTD: Tensor, state: State, c_B11: Tensor) -> Tensor:
    """Sets the component along `v` to `c`."""
    return h_BTD + (c_B11 - along(h_BTD, state["v"])) * state["v"]


METHOD = Method("directional_ablation", fit, apply, settings=("centre",), neutral=None)
