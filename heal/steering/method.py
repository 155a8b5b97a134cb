"""What every activation method has in common: it is fitted at a site, and shifts what comes out there by a dose.

Shape suffixes: P pairs, B rows, T positions, D width of the site, K modes or clusters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# What a method keeps of one site, float32 on the CPU. "v" is always there: the main direction `[D]`.
State = dict[str, Tensor]


class NoDirection(ValueError):
    """The activations of the two personas do not say where to steer."""


@dataclass(frozen=True)
class Method:
    """One way to steer; a file of heal/steering/methods each.

    Attributes:
        name: as `steer.method` calls it: that of its file.
        fit: `(positive_PD, negative_PD, **given) -> State`, pair by pair activations of one site. `given` holds
            `settings` by name, without `centre`; where `basis` is not "none", also `gram_DD` (float64) and
            `bias_D` (None: no bias).
        apply: `(h_BTD, state, c_B11) -> h_BTD`, float32, unless `in_float32` says that it takes the model's dtype.
        tensors: names in a `State` beside "v".
        settings: the keys of the recipe's `steer` section that it takes.
        site: where it acts: on a block's output ("block"), or on the output of each Linear of a block that
            writes to the residual stream ("writer").
        basis: whose weights give it a basis: "none", those of the "site", or those of the whole "band".
        neutral: the coefficient at which it does nothing; None where it always does something.
        largest: the largest coefficient that means anything; None where there is no such bound.
        falling: whether the shift shrinks as the coefficient grows from 0.
        origin_free: whether a shift of the origin of the activations changes nothing, so that `centre` cannot.
        in_float32: whether it is given float32 whatever the model computes in.
    """

    name: str
    fit: Callable[..., State]
    apply: Callable[[Tensor, State, Tensor], Tensor]
    tensors: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    site: Literal["block", "writer"] = "block"
    basis: Literal["none", "site", "band"] = "none"
    neutral: float | None = 0.0
    largest: float | None = None
    falling: bool = False
    origin_free: bool = False
    in_float32: bool = True


def contrast(positive_PD: Tensor, negative_PD: Tensor) -> Tensor:
    """Mean of the positive activations minus mean of the negative ones, `[D]`, float64."""
    return positive_PD.double().mean(0) - negative_PD.double().mean(0)


def unit(v_D: Tensor) -> Tensor:
    """`v_D` at length 1.

    Raises:
        NoDirection: its length is 0.
    """
    norm = v_D.norm()
    if norm == 0:
        raise NoDirection("the two personas' activations have the same mean, so there is no direction to steer along")
    return v_D / norm


def along(h_BTD: Tensor, v_D: Tensor) -> Tensor:
    """Component of each position along a unit vector, `[B, T, 1]`."""
    return (h_BTD * v_D).sum(-1, keepdim=True)


def cosine(h_BTK: Tensor, v_K: Tensor) -> Tensor:
    """Cosine of each position to a unit vector, `[B, T, 1]`; 0 where a position is 0."""
    return along(h_BTK, v_K) / h_BTK.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(h_BTK.dtype).tiny)
