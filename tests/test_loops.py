"""Rows that have visibly looped stop, as soon as the filter is bound to drop them and not before."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from heal.decoding import SHORTEST_LOOP, decode
from heal.models.language_model import LanguageModel
from tests.cases import case
from tests.tiny import load


def loop_length(ids: Sequence[int]) -> int:
    """Tokens at the end that repeat with some period of at most eight."""
    runs = []
    for period in range(1, 9):
        run = next((n for n in range(len(ids) - period) if ids[-1 - n] != ids[-1 - n - period]), len(ids) - period)
        runs.append(run + period if run else 0)
    return max(runs)


def looping(folder: Path) -> tuple[LanguageModel, list[list[int]]]:
    """A model whose next token depends on the last one alone, and a prompt each into loops of 1, 3 and 200 tokens."""
    model = load(folder).model
    follows = list(range(272))  # token -> the next one; 10 says itself
    for first, length in ((20, 3), (30, 200)):
        for step in range(length):
            follows[first + step] = first + (step + 1) % length
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        h_VD = model.model.norm(model.model.embed_tokens.weight)
        head_VD = torch.zeros_like(h_VD)
        head_VD[follows] = h_VD
        model.lm_head.weight = torch.nn.Parameter(head_VD)
    return replace(load(folder), model=model, end_ids=frozenset()), [[5, 10], [5, 21], [5, 40]]


def test_a_row_stops_once_its_loop_is_the_share_that_the_filter_drops(tiny_folder: Path):
    for share in [0.3, 0.5]:
        with case(share):
            model, asked = looping(tiny_folder)
            free = decode(model, asked, 60)
            stopped = decode(model, asked, 60, loop_share=share)
            assert [each.looped for each in stopped] == [True, True, False]
            assert [loop_length(each.ids) for each in stopped[:2]] == [int(share * 60) + 1] * 2
            for whole, part in zip(free, stopped, strict=True):
                assert not whole.looped
                assert len(whole.ids) == 60
                assert part.ids == whole.ids[: len(part.ids)]
            assert stopped[2].ids == free[2].ids


def test_a_short_loop_is_left_alone(tiny_folder: Path):
    model, asked = looping(tiny_folder)
    assert not any(each.looped for each in decode(model, asked, SHORTEST_LOOP - 1, loop_share=0.1))
