"""Tries on a loaded model what the rest of heal relies on, and refuses it, or switches off what is inexact.

Shape suffixes: B rows, T positions, N positions of several rows pooled, D hidden size, V vocabulary.
"""

import torch
from torch import Tensor, nn

from heal.errors import UserError
from heal.models.architectures import is_recurrent, residual
from heal.models.cached import CachedRows, padded
from heal.models.language_model import LanguageModel
from heal.models.packing import MIN_SHARED

# Relative differences, as powers of the dtype's epsilon. Between two orders of the same sums: float32 8e-4, bfloat16
# 0.11; a wrong position or state makes it about 1. Where only what must not be seen differs, nearly no bit may
# change: float32 3e-6, bfloat16 0.02.
_NEAR, _SAME = 0.45, 0.8
_ROWS = ([5, 6, 7, 8, 9, 10, 11, 12, 13], [4, 3, 5], [9, 4, 7, 8, 3, 6], [7, 3, 3, 8, 9, 5])  # of different lengths
_LAST = 4  # a token that each of them goes on with


@torch.inference_mode()
def check_supported(language_model: LanguageModel) -> None:
    """Tries attention, blocks, head and decoding on a few short rows.

    Where a prefix tree gives other hidden states than its rows one by one, `shares` becomes False; where padding on
    the left changes a row, `pads`.

    Raises:
        UserError: a token depends on later ones, blocks are not where heal looks for them or return something else
            than hidden states, logits are not the head applied to the final hidden states, or rows cannot leave a
            batch.
    """
    where = f"model.name={language_model.name}"
    _check_causal(language_model, where)
    _check_blocks(language_model, where)
    _check_head(language_model, where)
    language_model.shares = shares_exactly(language_model)
    language_model.pads = pads_exactly(language_model)
    _check_leaving(language_model, where)


def _check_causal(language_model: LanguageModel, where: str) -> None:
    h_BTD = _final(language_model, [[0, 1, 2, 3], [0, 1, 2, 4]])
    if not _close(h_BTD[0, :-1], h_BTD[1, :-1], _NEAR):
        raise UserError(f"{where}: not causal: a token sees the tokens after it")


def _check_blocks(language_model: LanguageModel, where: str) -> None:
    decoder = language_model.decoder
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise UserError(
            f"{where}: its decoder ({type(decoder).__name__}) has no list of blocks named 'layers'; this architecture "
            "is not supported"
        )
    returned: list[object] = []
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: returned.append(output))
        for block in language_model.blocks
    ]
    h_BTD = _final(language_model, [list(_ROWS[0])])
    for hook in hooks:
        hook.remove()
    for block, output in zip(language_model.blocks, returned, strict=True):
        h = residual(language_model.model, output) if isinstance(output, Tensor | tuple) else output
        if not isinstance(h, Tensor) or h.shape != h_BTD.shape:
            found = f"a tensor of shape {tuple(h.shape)}" if isinstance(h, Tensor) else f"a {type(h).__name__}"
            raise UserError(
                f"{where}: its blocks ({type(block).__name__}) return {found}, not hidden states "
                f"{tuple(h_BTD.shape)}; this architecture is not supported"
            )


def _check_head(language_model: LanguageModel, where: str) -> None:
    ids_BT = torch.tensor([list(_ROWS[0])], device=language_model.device)
    ours_TV = language_model.logits(_final(language_model, ids_BT.tolist())[0])
    theirs_TV = language_model.model(input_ids=ids_BT).logits[0].to(ours_TV.dtype)
    if not torch.allclose(ours_TV, theirs_TV, atol=1e-2, rtol=1e-2):
        raise UserError(
            f"{where}: its logits are not its head applied to its final hidden states (a scale or bias that heal does "
            "not know); this architecture is not supported"
        )


@torch.inference_mode()
def shares_exactly(language_model: LanguageModel) -> bool:
    """Whether rows with a common beginning have the hidden states in one tree that they have alone.

    Only where an attention mask decides what a token sees: no layer may carry a state, and what stands in one branch
    must change nothing in the other.
    """
    model = language_model.model
    if model.config._attn_implementation not in ("sdpa", "eager") or is_recurrent(model):
        return False
    beginning = list(range(3, 3 + MIN_SHARED))
    one, sibling, other = ([*beginning, *branch] for branch in ([1, 2, 3], [7, 5, 9], [2, 4, 1]))
    ends_ND = [
        _row_states(language_model, rows, trees)
        for rows, trees in (
            ([one, other], [[0, 1]]),
            ([sibling, other], [[0, 1]]),
            ([other], [[0]]),
        )
    ]
    return _close(ends_ND[0], ends_ND[1], _SAME) and _close(ends_ND[0], ends_ND[2], _NEAR)


@torch.inference_mode()
def pads_exactly(language_model: LanguageModel) -> bool:
    """Whether a row padded on the left says what it says alone, whatever stands in the padding."""
    rows = [list(row) for row in _ROWS]
    ids_BT, real_BT = padded(rows, language_model.pad_id, language_model.device)
    others_BT = torch.where(real_BT.bool(), ids_BT, _LAST)
    together_BD, beside_BD = (_go_on(language_model, ids, real_BT) for ids in (ids_BT, others_BT))
    alone_BD = torch.cat([_alone(language_model, row) for row in rows])
    return _close(together_BD, beside_BD, _SAME) and _close(together_BD, alone_BD, _NEAR)


def _check_leaving(language_model: LanguageModel, where: str) -> None:
    """Rows of one length, one of which leaves, go on as if alone."""
    rows = [list(row) for row in _ROWS[2:]] + [list(_ROWS[0][:6])]
    cached = CachedRows(language_model, len(rows))
    device = language_model.device
    cached.read(torch.tensor(rows, device=device))
    cached.select(torch.tensor([2, 0], device=device))
    together_BD = cached.read(torch.full((2, 1), _LAST, device=device))
    alone_BD = torch.cat([_alone(language_model, rows[row]) for row in (2, 0)])
    if not _close(together_BD, alone_BD, _NEAR):
        raise UserError(
            f"{where}: a row decoded beside others differs from the same row alone (its cache does not hold what its "
            "layers need); this architecture is not supported"
        )


def _final(language_model: LanguageModel, rows: list[list[int]]) -> Tensor:
    """Final hidden states of rows of one length, `[B, T, D]`."""
    ids_BT = torch.tensor(rows, device=language_model.device)
    return language_model.decoder(input_ids=ids_BT, use_cache=False).last_hidden_state


def _row_states(language_model: LanguageModel, rows: list[list[int]], trees: list[list[int]]) -> Tensor:
    """Final hidden states of the last row of a pass, `[T, D]`."""
    packed = language_model.pack(rows, trees)
    return language_model.hidden_states(packed)[packed.nodes[-1]]


def _go_on(language_model: LanguageModel, ids_BT: Tensor, real_BT: Tensor) -> Tensor:
    """Final hidden states after rows and one more token, read in two steps over one cache, `[B, D]`."""
    cached = CachedRows(language_model, len(ids_BT))
    cached.read(ids_BT, real_BT)
    return cached.read(torch.full((len(ids_BT), 1), _LAST, device=ids_BT.device))


def _alone(language_model: LanguageModel, row: list[int]) -> Tensor:
    """Final hidden states after a row and one more token, without cache or padding, `[1, D]`."""
    return _final(language_model, [[*row, _LAST]])[:, -1]


def _close(ours: Tensor, theirs: Tensor, power: float) -> bool:
    """Whether the difference is at most the dtype's epsilon to `power`, relative to `theirs` (root mean squares)."""
    difference, size = (ours - theirs).float().square().mean().sqrt(), theirs.float().square().mean().sqrt()
    eps = max(torch.finfo(theirs.dtype).eps, torch.finfo(torch.float32).eps)  # layers may compute in float32
    return bool(difference <= eps**power * size)
