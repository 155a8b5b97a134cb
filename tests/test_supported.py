"""What is tried on a model when it is loaded, and what follows where a part of it is not exact."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heal import accumulator
from heal.accumulator import Accumulator
from heal.coverage import Coverage
from heal.decoding import decode
from heal.errors import UserError
from heal.models import architectures
from heal.models.adapted import adapted_linears
from heal.models.cached import CachedRows
from heal.models.language_model import LanguageModel
from tests import tiny
from tests.cases import case
from tests.families import FAMILIES


def family(name: str, folder: Path) -> LanguageModel:
    return tiny.load(FAMILIES[name].save(folder / name), attention=FAMILIES[name].attention)


def test_without_padding_rows_of_one_length_are_decoded_together_and_say_the_same(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    model = tiny.load(tiny_folder)
    prompts = [*tiny.prompts(model), *tiny.prompts(model)]
    read, padding = CachedRows.read, []

    def watched(self: CachedRows, ids_BT: Tensor, real_BT: Tensor | None = None) -> Tensor:
        padding.append(real_BT is not None and not real_BT.all())
        return read(self, ids_BT, real_BT)

    monkeypatch.setattr(CachedRows, "read", watched)
    padded = decode(model, prompts, 6)
    assert any(padding)
    padding.clear()
    assert [row.ids for row in decode(replace(model, pads=False), prompts, 6)] == [row.ids for row in padded]
    assert padding
    assert not any(padding)


def test_blocks_that_return_something_else_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(architectures, "ARCHITECTURES", {})
    for name, found in (("Bamba", "a tuple"), ("Gemma 3n (text)", "a tensor of shape")):
        with case(name), pytest.raises(UserError, match=f"its blocks .* return {found}"):
            family(name, tmp_path)


def test_lora_elsewhere_than_asked_for_is_an_error_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = family("Qwen3-MoE", tmp_path)
    layers = list(range(len(model.blocks)))
    blocks = {id(module) for block in model.blocks for module in block.modules() if isinstance(module, torch.nn.Linear)}
    linears = [name for name, module in model.model.named_modules() if id(module) in blocks]
    assert set(adapted_linears(model, layers)[0]) < set(linears)
    monkeypatch.setattr(accumulator, "adapted_linears", lambda *_: (linears, Coverage(len(linears), ("all",))))
    with pytest.raises(UserError, match="peft put LoRA on other layers than were asked for"):
        Accumulator(model, 4, 8, layers)
