"""Tries on a loaded model what the rest of heal relies on, and refuses it, or switches off what is inexact.

What is compared are next-token distributions, so that a limit means the same for any model, dtype and device: the KL
between two ways of computing a position, relative to the KL between the model's own distributions at two positions,
which is about what a wrong position or state gives.

Shape suffixes: B rows, T positions, N positions of several rows pooled, D hidden size, V vocabulary.
"""

import torch
from torch import Tensor, nn

from heal.errors import UserError
from heal.models.agreement import kl
from heal.models.architectures import is_recurrent, residual
from heal.models.cached import CachedRows, padded
from heal.models.language_model import LanguageModel
from heal.models.packing import MIN_SHARED
from heal.models.recorded import NotRecorded, Recorded

# Relative KL, as powers of the dtype's epsilon. Between two orders of the same sums, at the median position of each row
# (a rare token can amplify rounding a thousandfold): float32 6e-7, float16 2e-3, bfloat16 1e-2; SmolLM2-135M has 1e-11,
# 3e-5 and 1e-3, and a wrong position or state about 1. Where only what must not be seen differs, nearly no bit may
# change at any position: float32 8e-12, bfloat16 4e-4.
_NEAR, _SAME = 0.9, 1.6
_ROWS = ([5, 6, 7, 8, 9, 10, 11, 12, 13], [4, 3, 5], [9, 4, 7, 8, 3, 6], [7, 3, 3, 8, 9, 5])  # of different lengths
_GOES_ON = (4, 11, 7)  # tokens that each of them goes on with


@torch.no_grad()
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
    if not _near(language_model, h_BTD[:1, :-1], h_BTD[1:, :-1]):
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
    if float(kl(theirs_TV, ours_TV).median()) > _limit(language_model, theirs_TV, _NEAR):
        raise UserError(
            f"{where}: its logits are not its head applied to its final hidden states (a scale or bias that heal does "
            "not know); this architecture is not supported"
        )


@torch.no_grad()
def shares_exactly(language_model: LanguageModel) -> bool:
    """Whether rows with a common beginning have the hidden states in one tree that they have alone.

    Only where an attention mask decides what a token sees: no layer may carry a state, and what stands in one branch
    must change nothing in the other.
    """
    model = language_model.model
    if model.config._attn_implementation not in ("sdpa", "eager") or is_recurrent(model):
        return False
    beginning = list(range(3, 3 + MIN_SHARED))
    branches = ([1, 2, 3, 12, 9, 5], [7, 5, 9, 3, 1, 8], [2, 4, 1, 6, 13, 10])
    one, sibling, other = ([*beginning, *branch] for branch in branches)
    beside_TD, elsewhere_TD, alone_TD = (
        _row_states(language_model, rows, trees)[MIN_SHARED:]
        for rows, trees in (
            ([one, other], [[0, 1]]),
            ([sibling, other], [[0, 1]]),
            ([other], [[0]]),
        )
    )
    return _same(language_model, beside_TD, elsewhere_TD) and _near(language_model, beside_TD[None], alone_TD[None])


@torch.no_grad()
def pads_exactly(language_model: LanguageModel) -> bool:
    """Whether a row padded on the left says what it says alone, whatever stands in the padding."""
    rows = [list(row) for row in _ROWS]
    ids_BT, real_BT = padded(rows, language_model.pad_id, language_model.device)
    others_BT = torch.where(real_BT.bool(), ids_BT, _GOES_ON[0])
    together_BTD, beside_BTD = (_go_on(language_model, ids, real_BT) for ids in (ids_BT, others_BT))
    alone_BTD = torch.cat([_alone(language_model, row) for row in rows])
    same = _same(language_model, together_BTD.flatten(0, 1), beside_BTD.flatten(0, 1))
    return same and _near(language_model, together_BTD, alone_BTD)


def record_steps(language_model: LanguageModel) -> list[str]:
    """On a GPU, tries whether steps of decoding can be recorded and sets `records`; a line that says why not."""
    reason = _why_not_recorded(language_model) if language_model.device.type == "cuda" else ""
    language_model.records = language_model.device.type == "cuda" and not reason
    return [f"kernels of decoding are started one by one, which is slower: {reason}"] if reason else []


@torch.inference_mode()
def _why_not_recorded(language_model: LanguageModel) -> str:
    rows = [list(row) for row in (_ROWS if language_model.pads else _ROWS[2:])]
    ids_BT, real_BT = padded(rows, language_model.pad_id, language_model.device)
    cached = CachedRows(language_model, len(rows))
    cached.read(ids_BT, real_BT)
    if not cached.fix(len(_GOES_ON)):
        return "its layers keep more than keys and values"
    token_B1 = torch.zeros(len(rows), 1, dtype=torch.long, device=language_model.device)
    step = Recorded(lambda: (cached.read(token_B1),), language_model.device)
    states: list[Tensor] = []
    for token in _GOES_ON:
        token_B1.fill_(token)
        try:
            states.append(*step())
        except NotRecorded as error:
            return error.reason
    if not _near(language_model, torch.stack(states, dim=1), _go_on(language_model, ids_BT, real_BT)):
        return "a recorded step says something else"
    return ""


def _check_leaving(language_model: LanguageModel, where: str) -> None:
    """Rows of one length, one of which leaves, go on as if alone."""
    rows = [list(row) for row in _ROWS[2:]] + [list(_ROWS[0][:6])]
    cached = CachedRows(language_model, len(rows))
    device = language_model.device
    cached.read(torch.tensor(rows, device=device))
    cached.select(torch.tensor([2, 0], device=device))
    together_BTD = _read_on(cached, 2, device)
    alone_BTD = torch.cat([_alone(language_model, rows[row]) for row in (2, 0)])
    if not _near(language_model, together_BTD, alone_BTD):
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
    """Final hidden states of the tokens that rows go on with, read one by one over one cache, `[B, T, D]`."""
    cached = CachedRows(language_model, len(ids_BT))
    cached.read(ids_BT, real_BT)
    return _read_on(cached, len(ids_BT), ids_BT.device)


def _read_on(cached: CachedRows, rows: int, device: torch.device) -> Tensor:
    return torch.stack([cached.read(torch.full((rows, 1), token, device=device)) for token in _GOES_ON], dim=1)


def _alone(language_model: LanguageModel, row: list[int]) -> Tensor:
    """Final hidden states of the tokens that a row goes on with, without cache or padding, `[1, T, D]`."""
    return _final(language_model, [[*row, *_GOES_ON]])[:, -len(_GOES_ON) :]


def _near(language_model: LanguageModel, ours_BTD: Tensor, theirs_BTD: Tensor) -> bool:
    """Whether both say the same up to rounding at the median position of each row, given final hidden states."""
    ours_BTV, theirs_BTV = (
        language_model.logits(h_BTD.flatten(0, 1)).unflatten(0, h_BTD.shape[:2]) for h_BTD in (ours_BTD, theirs_BTD)
    )
    limit = _limit(language_model, theirs_BTV.flatten(0, 1), _NEAR)
    return all(
        float(kl(theirs_TV, ours_TV).median()) <= limit for ours_TV, theirs_TV in zip(ours_BTV, theirs_BTV, strict=True)
    )


def _same(language_model: LanguageModel, ours_ND: Tensor, theirs_ND: Tensor) -> bool:
    """Whether both say the same at every position, nearly bit for bit, given final hidden states."""
    ours_NV, theirs_NV = (language_model.logits(h_ND) for h_ND in (ours_ND, theirs_ND))
    return float(kl(theirs_NV, ours_NV).max()) <= _limit(language_model, theirs_NV, _SAME)


def _limit(language_model: LanguageModel, logits_NV: Tensor, power: float) -> float:
    """The dtype's epsilon to `power`, of the KL between neighbouring positions (median), in nats."""
    # Layers may compute in float32 where the model is in float64.
    eps = max(torch.finfo(language_model.model.dtype).eps, torch.finfo(torch.float32).eps)
    return eps**2 + eps**power * float(kl(logits_NV, logits_NV.roll(1, 0)).median())
