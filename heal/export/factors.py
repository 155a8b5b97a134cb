"""The update of a student as low-rank factors: exact, or truncated by SVD.

Shape suffixes: R rank, I inputs, O outputs, K singular values that can differ from zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from heal.accumulator import Accumulator
from heal.errors import RoundError, UserError


class ExportError(RoundError):
    """An export that differs from the student it was made from; nothing of it is left on disk."""


@dataclass(frozen=True)
class Factors:
    """`dW = B A` of every layer of the history, the gate and each round's scale inside B.

    Attributes:
        layers: module name -> (A `[R, I]`, B `[O, R]`), float32 on the CPU.
        rank: R.
        lost: `||dW - B A|| / ||dW||` (Frobenius, over all layers together), dW the exact update; 0 when exact.
    """

    layers: dict[str, tuple[Tensor, Tensor]]
    rank: int
    lost: float = 0.0


def history_factors(accumulator: Accumulator, gate: float = 1.0) -> Factors:
    """The history at `gate`: the rounds stacked, exactly.

    Raises:
        UserError: no round is folded, or the gate is 0 (that is the base).
        ExportError: the factors are not finite, or every B is 0 (the rounds learned nothing).
    """
    if not accumulator.history_rank:
        raise UserError("nothing to export: no round is folded into the history yet")
    if gate == 0:
        raise UserError("gate=0 is the base itself; there is nothing to export")
    layers = {
        name: (a_RI.float().cpu().contiguous().clone(), (gate * b_OR.float()).cpu().contiguous())
        for name, a_RI, b_OR in accumulator.updates()
    }
    if not all(bool(torch.isfinite(factor).all()) for pair in layers.values() for factor in pair):
        raise ExportError("the student's weights are not finite; nothing was exported.")
    if not any(bool(b_OR.any()) for _, b_OR in layers.values()):
        raise ExportError("every lora_B of the student is zero: its rounds learned nothing, so nothing was exported.")
    return Factors(layers, accumulator.history_rank)


def truncate(factors: Factors, rank: int) -> Factors:
    """The nearest factors of `rank` (Eckart-Young, layer by layer), with sqrt(S) on both sides.

    With `B = Q_B R_B` and `A' = Q_A R_A`, the SVD of the small `R_B R_A'` gives that of `B A` without forming
    the full matrix. Computed in float64.

    Raises:
        UserError: the rank is below 1 or above that of the factors.
    """
    if not 1 <= rank <= factors.rank:
        raise UserError(f"rank={rank}: must be from 1 to {factors.rank}, the rank of the exact adapter (leave it out)")
    layers, cut, total = {}, 0.0, 0.0
    for name, (a_RI, b_OR) in factors.layers.items():
        qb_OK, rb_KR = torch.linalg.qr(b_OR.double())
        qa_IK, ra_KR = torch.linalg.qr(a_RI.double().T)
        u_KK, s_K, vh_KK = torch.linalg.svd(rb_KR @ ra_KR.T, full_matrices=False)
        root_K = s_K[:rank].sqrt()
        b_new, a_new = qb_OK @ (u_KK[:, :rank] * root_K), (root_K[:, None] * vh_KK[:rank]) @ qa_IK.T
        layers[name] = _padded(a_new, rank, 0), _padded(b_new, rank, 1)
        cut += float(s_K[rank:].square().sum())
        total += float(s_K.square().sum())
    return Factors(layers, rank, lost=(cut / total) ** 0.5)


def _padded(factor: Tensor, rank: int, axis: int) -> Tensor:
    """`factor` in float32 with zeros up to `rank` along `axis` (a layer narrower than the rank has fewer)."""
    shape = list(factor.shape)
    shape[axis] = rank
    whole = torch.zeros(shape)
    whole.narrow(axis, 0, factor.shape[axis]).copy_(factor)
    return whole
