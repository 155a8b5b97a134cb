"""none: no divergence and so no barrier: plain SFT, the control.

No reference is computed, and D is 0 at every position.
"""

from torch import Tensor

from heal.healing.divergences import Divergence


def per_position(student_NV: Tensor, reference_NV: Tensor) -> Tensor:
    """Zeros, `[N]`."""
    return student_NV.new_zeros(len(student_NV))


DIVERGENCE = Divergence("none", "0", per_position, needs_reference=False)
