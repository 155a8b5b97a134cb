"""spherical: `|h| slerp(h / |h|, u, c)`, `u = v / |v|`, `v = mean(h+) - mean(h-)`.

Each position turns towards the direction by the fraction `c` of the angle between them, and keeps its norm: blocks
normalise what they read, so the direction of an activation says more than its length. `c = 0` is the identity and
`c = 1` is `|h| u`; a negative coefficient turns towards `-u`. A position exactly opposite to where it should turn has
no way to go and stays. With `centre`, it is `h` minus the mean of both sets that turns and keeps its norm.

Spherical steering (arXiv 2602.08169), without its confidence gate.
"""

import torch
from torch import Tensor

from heal.steering.method import Method, State, along
from heal.steering.methods.directional_ablation import fit

_PARALLEL = 1e-3  # sine of an angle too small to turn in: the straight line and the arc are the same


def apply(h_BTD: Tensor, state: State, c_B11: Tensor) -> Tensor:
    """Spherical interpolation; for nearly parallel vectors the linear one."""
    u_B1D = torch.where(c_B11 < 0, -1.0, 1.0) * state["v"]
    t_B11 = c_B11.abs()
    norm_BT1 = h_BTD.norm(dim=-1, keepdim=True)
    part_BT1 = along(h_BTD, u_B1D)
    across_BT1 = (h_BTD - part_BT1 * u_B1D).norm(dim=-1, keepdim=True)
    angle_BT1 = torch.atan2(across_BT1, part_BT1)
    sine_BT1 = angle_BT1.sin()
    flat = sine_BT1 < _PARALLEL
    safe_BT1 = torch.where(flat, 1.0, sine_BT1)
    stays_BT1 = torch.where(flat, 1 - t_B11, ((1 - t_B11) * angle_BT1).sin() / safe_BT1)
    comes_BT1 = torch.where(flat, t_B11, (t_B11 * angle_BT1).sin() / safe_BT1)
    turned_BTD = stays_BT1 * h_BTD + comes_BT1 * norm_BT1 * u_B1D
    return torch.where(flat & (part_BT1 <= 0), h_BTD, turned_BTD)


METHOD = Method("spherical", fit, apply, settings=("centre",), largest=1.0)
