"""How near two floating-point results are held to each other: in proportion to their size.

A float32 number is rounded by 6e-8 of itself, and a sum by as much of its largest term. A few blocks of a model add up
hundreds of such roundings, in an order that the processor, the threads and the batch decide, so that results which are
equal on paper differ by 1e-6 of the largest number among them, and by 1e-5 at worst.
"""

import torch
from torch import Tensor

ROUNDING = 5e-5


def assert_near(found: Tensor, expected: Tensor, relative: float = ROUNDING) -> None:
    """The largest difference is at most `relative` times the largest magnitude in `expected`."""
    assert found.shape == expected.shape
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=relative * scale)
