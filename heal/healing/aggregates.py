"""How a completion's divergence D comes from its positions' (docs/method.md, Healing): one table.

Shape suffixes: N completion positions of the batch pooled, C completions. Each function takes the divergence per
position `kl_N` (float32), which completion each position belongs to (0 to C - 1; every one has positions), and C, and
gives `D_C`, nats. torch comes in when one is called, so that the recipe can read the names alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heal.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor

RMSE_EPS = 1e-6  # nats


@dataclass(frozen=True)
class Aggregate:
    """One entry of the table: what `--help` says of it, and `(kl_N, completion_N, C) -> D_C`."""

    help: str
    over_positions: "Callable[[Tensor, Tensor, int], Tensor]"


def mean(kl_N: "Tensor", completion_N: "Tensor", completions: int) -> "Tensor":
    """Mean over positions."""
    total_C = kl_N.new_zeros(completions).index_add(0, completion_N, kl_N)
    count_C = kl_N.new_zeros(completions).index_add(0, completion_N, kl_N.new_ones(len(kl_N)))
    return total_C / count_C


def rmse(kl_N: "Tensor", completion_N: "Tensor", completions: int) -> "Tensor":
    """`sqrt(mean(KL^2) + eps^2) - eps`: exactly 0 with a finite gradient where every KL is 0."""
    return (mean(kl_N.square(), completion_N, completions) + RMSE_EPS**2).sqrt() - RMSE_EPS


def p95(kl_N: "Tensor", completion_N: "Tensor", completions: int) -> "Tensor":
    """95th percentile, between positions linearly interpolated."""
    import torch

    return torch.stack([part.quantile(0.95) for part in _parts(kl_N, completion_N, completions)])


def largest(kl_N: "Tensor", completion_N: "Tensor", completions: int) -> "Tensor":
    """The largest."""
    import torch

    return torch.stack([part.max() for part in _parts(kl_N, completion_N, completions)])


def _parts(kl_N: "Tensor", completion_N: "Tensor", completions: int) -> "list[Tensor]":
    return [kl_N[completion_N == index] for index in range(completions)]


AGGREGATES: dict[str, Aggregate] = {
    "mean": Aggregate("mean over positions; a short loop in a long completion is diluted", mean),
    "rmse": Aggregate("root of the mean square; a short loop counts", rmse),
    "p95": Aggregate("95th percentile; sparser gradients", p95),
    "max": Aggregate("the largest; one position's gradient", largest),
}


def aggregate_named(name: str) -> Aggregate:
    """The entry of that name; UserError when there is none, naming the nearest."""
    if name not in AGGREGATES:
        raise UserError(f"'{name}': no such aggregate{nearest(name, list(AGGREGATES))}")
    return AGGREGATES[name]
