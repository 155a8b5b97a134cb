"""Rounds on disk: saved, loaded and replayed bit for bit, and what is no round of this model."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel

from heal.accumulator import CURRENT, HISTORY, Accumulator
from heal.errors import UserError
from tests.cases import case
from tests.closeness import assert_near
from tests.students import ALPHA, LAYERS, RANK, learn, logits, only_current_trains, put, student, weights
from tests.tiny import load


def test_a_saved_round_comes_back_bit_for_bit(tiny_folder: Path, tmp_path: Path):
    _, accumulator = student(tiny_folder, rounds=1)
    learn(accumulator, 1)
    saved = accumulator.save_current()
    _, other = student(tiny_folder, rounds=1)
    other.load_current(put(tmp_path, saved))
    for name, weight in weights(other, CURRENT).items():
        assert torch.equal(weight, weights(accumulator, CURRENT)[name])
    assert other.save_current() == saved
    assert only_current_trains(other)


def test_the_same_weights_are_saved_as_the_same_bytes(tiny_folder: Path):
    made = []
    for _ in range(2):
        _, accumulator = student(tiny_folder)
        learn(accumulator, 0)
        made.append(accumulator.save_current())
    assert made[0] == made[1] == accumulator.save_current()


def test_a_saved_round_is_a_folder_that_peft_loads(tiny_folder: Path, tmp_path: Path):
    model, accumulator = student(tiny_folder)
    learn(accumulator, 0)
    put(tmp_path, accumulator.save_current())
    plain = load(tiny_folder)
    PeftModel.from_pretrained(plain.model, str(tmp_path))
    assert_near(logits(plain), logits(model))
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert (config.r, config.lora_alpha, config.lora_dropout) == (RANK, ALPHA, 0.0)


def test_the_saved_config_names_no_folder_but_the_base(tiny_folder: Path):
    model, accumulator = student(tiny_folder)
    config = json.loads(accumulator.save_current()["adapter_config.json"])
    assert config["base_model_name_or_path"] == model.name
    assert (config["r"], config["lora_alpha"]) == (RANK, ALPHA)


def test_an_adapter_of_another_rank_is_refused(tiny_folder: Path, tmp_path: Path):
    other = Accumulator(load(tiny_folder), RANK + 1, ALPHA, LAYERS)
    _, accumulator = student(tiny_folder)
    before = weights(accumulator, CURRENT)
    with pytest.raises(UserError, match="do not fit this model, rank and set of layers"):
        accumulator.load_current(put(tmp_path, other.save_current()))
    assert all(torch.equal(weight, before[name]) for name, weight in weights(accumulator, CURRENT).items())


def test_an_adapter_of_other_layers_is_refused(tiny_folder: Path, tmp_path: Path):
    other = Accumulator(load(tiny_folder), RANK, ALPHA, [1])
    with pytest.raises(UserError, match="do not fit"):
        student(tiny_folder)[1].load_current(put(tmp_path, other.save_current()))


def test_a_damaged_adapter_is_refused_by_name(tiny_folder: Path, tmp_path: Path):
    for damage in ["truncated", "empty", "foreign", "missing"]:
        with case(damage):
            _, accumulator = student(tiny_folder)
            path = put(tmp_path, accumulator.save_current()) / "adapter_model.safetensors"
            content = path.read_bytes()
            if damage == "missing":
                path.unlink()
            else:
                path.write_bytes({"truncated": content[:-7], "empty": b"", "foreign": b"\x80\x04pickle" * 40}[damage])
            with pytest.raises(UserError, match=r"adapter_model\.safetensors: not a readable adapter") as error:
                accumulator.load_current(tmp_path)
            assert "\n" not in str(error.value)


def test_rounds_replayed_from_disk_are_the_rounds_that_were_never_stopped(tiny_folder: Path, tmp_path: Path):
    model, accumulator = student(tiny_folder)
    for r in range(2):
        accumulator.start_round(r)
        learn(accumulator, r)
        put(tmp_path / str(r), accumulator.save_current())
        accumulator.fold()
    accumulator.start_round(2)

    again_model, again = student(tiny_folder)
    for r in range(2):
        again.start_round(r)
        again.load_current(tmp_path / str(r))
        again.fold()
    again.start_round(2)
    for part in (HISTORY, CURRENT):
        expected = weights(accumulator, part)
        assert all(torch.equal(weight, expected[name]) for name, weight in weights(again, part).items())
    assert torch.equal(logits(again_model), logits(model))
