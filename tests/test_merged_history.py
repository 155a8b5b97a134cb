"""Merged weights: a long history costs nothing, and the base stays what it was."""

from pathlib import Path

import pytest
import torch

from heal.accumulator import CURRENT, HISTORY, Accumulator
from heal.models.language_model import LanguageModel
from tests.closeness import assert_near
from tests.students import learn, logits, student
from tests.tiny import load
from tests.training import CONFIG, healed


def unmerged(folder: Path, rounds: int) -> tuple[LanguageModel, Accumulator]:
    """What `student` makes, without merged weights."""
    return student(folder, rounds=rounds, merge=False)


@pytest.mark.parametrize("rounds", [1, 3])
def test_merged_weights_make_the_student_that_the_adapters_make(tiny_folder: Path, rounds: int):
    (merged, one), (plain, other) = student(tiny_folder, rounds=rounds), unmerged(tiny_folder, rounds)
    assert (one.merges, other.merges) == (True, False)
    learn(one, 9)
    learn(other, 9)
    assert_near(logits(merged), logits(plain))
    for gates in ((1.0, 0.0), (0.5, 1.0), (0.0, 1.0), (0.0, 0.0)):
        with one.gates(*gates), other.gates(*gates):
            assert_near(logits(merged), logits(plain))
            if not gates[0]:
                assert torch.equal(logits(merged), logits(plain))


def test_with_merged_weights_no_history_is_computed_and_without_gates_no_adapter(tiny_folder: Path):
    _, accumulator = student(tiny_folder, rounds=2)
    layer = next(accumulator.current_layers())
    assert layer.active_adapters == [CURRENT]
    with accumulator.base():
        assert layer.active_adapters == []
    with accumulator.student():  # `current` is still empty
        assert layer.active_adapters == []
    learn(accumulator, 5)
    with accumulator.student():
        assert layer.active_adapters == [CURRENT]
    with accumulator.gates(0.5, 0.0):
        assert layer.active_adapters == [HISTORY]


def test_a_context_inside_another_goes_back_to_it(tiny_folder: Path):
    model, accumulator = student(tiny_folder, rounds=1)
    learn(accumulator, 7)
    with accumulator.previous():
        inside = logits(model)
        with accumulator.base():
            assert not torch.equal(logits(model), inside)
        assert torch.equal(logits(model), inside)


def test_an_error_inside_a_context_leaves_the_student_and_the_base_as_they_were(tiny_folder: Path):
    model, accumulator = student(tiny_folder, rounds=2)
    learn(accumulator, 7)
    before = logits(model)
    with accumulator.base():
        base = logits(model)
    for context in (accumulator.base, accumulator.previous, accumulator.student):
        with pytest.raises(RuntimeError, match="crash"), context():
            raise RuntimeError("crash")
    assert torch.equal(logits(model), before)
    with accumulator.base():
        assert torch.equal(logits(model), base)
        assert torch.equal(base, logits(load(tiny_folder)))


def test_on_adapters_the_history_is_the_adapter_that_is_exported(tiny_folder: Path):
    (merged, accumulator), (plain, _) = student(tiny_folder, rounds=2), unmerged(tiny_folder, 2)
    before = logits(merged)
    with accumulator.on_adapters():
        assert torch.equal(logits(merged), logits(plain))
        assert next(accumulator.current_layers()).active_adapters == [HISTORY, CURRENT]
        with accumulator.base():
            assert torch.equal(logits(merged), logits(load(tiny_folder)))
    assert torch.equal(logits(merged), before)


def test_a_base_in_fewer_bits_is_not_merged_into(tiny_folder: Path):
    assert not student(tiny_folder, torch.bfloat16, rounds=1)[1].merges


def test_a_student_on_merged_weights_trains_as_one_on_adapters(tiny_folder: Path):
    losses = []
    for model, accumulator in (student(tiny_folder, rounds=2), unmerged(tiny_folder, 2)):
        losses.append([entry.values["loss"] for entry in healed(model, accumulator, CONFIG)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
