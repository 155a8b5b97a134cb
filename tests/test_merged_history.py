"""Merged weights: a long history costs nothing, and the base stays what it was."""

import json
from pathlib import Path

import pytest
import torch

from heal.accumulator import CURRENT, HISTORY, Accumulator
from heal.models.language_model import LanguageModel
from heal.progress import silent
from heal.records import read_json
from heal.run.folder import RunFolder
from heal.run.manifest import MANIFEST
from heal.run.student import load_student
from heal.steps.merge import Merge, Merged
from tests import running
from tests.cases import case
from tests.closeness import assert_near
from tests.students import completions, learn, logits, put, student
from tests.tiny import load
from tests.training import CONFIG, healed


def unmerged(folder: Path, rounds: int) -> tuple[LanguageModel, Accumulator]:
    """What `student` makes, without merged weights."""
    return student(folder, rounds=rounds, merge=False)


def test_merged_weights_make_the_student_that_the_adapters_make(tiny_folder: Path):
    for rounds in (1, 3):
        (merged, one), (plain, other) = student(tiny_folder, rounds=rounds), unmerged(tiny_folder, rounds)
        assert (one.merges, other.merges) == (True, False)
        learn(one, 9)
        learn(other, 9)
        assert_near(logits(merged), logits(plain))
        for gates in ((1.0, 0.0), (0.5, 1.0), (0.0, 1.0), (0.0, 0.0)):
            with case(rounds, gates), one.gates(*gates), other.gates(*gates):
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


def layer_weights(accumulator: Accumulator) -> list[torch.Tensor]:
    return [layer.get_base_layer().weight.detach().clone() for layer in accumulator.current_layers()]


def test_in_16_bits_every_merge_rounds_the_base_and_the_whole_history_once(tiny_folder: Path):
    """Merging after each of three rounds leaves the weights that merging after the last one leaves; base stays."""
    model, often = student(tiny_folder, torch.bfloat16)
    base, kept = logits(model), layer_weights(often)
    for r in range(3):
        often.start_round(r)
        learn(often, r)
        often.fold()
        assert all(torch.equal(*pair) for pair in zip(layer_weights(often), kept, strict=True))  # not by itself
        often.merge()
    _, once = student(tiny_folder, torch.bfloat16, rounds=3)
    once.merge()
    assert once.rounds_merged
    updates = [b_OR @ a_RI for _, a_RI, b_OR in once.updates()]
    for merged, again, weight, update in zip(layer_weights(often), layer_weights(once), kept, updates, strict=True):
        assert torch.equal(merged, again)
        assert torch.equal(merged, (weight.float() + update).bfloat16())
    with often.base():
        assert torch.equal(logits(model), base)
    often.merge(False)
    assert all(torch.equal(*pair) for pair in zip(layer_weights(often), kept, strict=True))


def test_merged_weights_are_taken_in_16_bits_where_their_rounding_costs_no_more_than_the_limit(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = completions(9)
    found = {}
    for limit in (1.0, 0.0):
        model, accumulator = student(tiny_folder, torch.bfloat16, rounds=2)
        step = Merge(model, accumulator, rows, limit)
        found[limit] = step.compute(silent)
        accumulator.merge(found[limit].taken)
        assert bool(next(accumulator.current_layers()).active_adapters == [CURRENT]) == found[limit].taken
        put(tmp_path / str(limit), found[limit].files())
        assert Merged.load(tmp_path / str(limit)) == found[limit]
        assert f"{found[limit].kl_mean:.4f} nats" in step.finding(found[limit])
    assert found[1.0].taken
    assert not found[0.0].taken
    assert 0 < found[1.0].kl_mean == found[0.0].kl_mean < found[1.0].kl_p95 < 0.05

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(accumulator, "merge", full)
    assert not Merge(model, accumulator, rows, 1.0).compute(silent).taken


def test_a_16_bit_run_continues_and_loads_on_the_weights_that_it_was_measured_on(
    tiny_folder: Path, tmp_path: Path
) -> None:
    keys = ("run.name=there", "run.rounds=1", "model.dtype=bfloat16", "compute.merge_limit=1")
    words, log = running.words(tiny_folder, tmp_path, *keys), tmp_path / "log.txt"
    assert running.finish(words, log) == 0, log.read_text()
    folder = RunFolder(tmp_path / "there")
    assert Merged.load(folder.round(0)).taken
    on_weights = load_student(folder, torch.device("cpu"))
    assert next(on_weights.accumulator.current_layers()).active_adapters == [CURRENT]
    manifest = folder.round(0) / MANIFEST  # as a version that did not merge left it
    steps = {name: entry | {"seal": None} for name, entry in read_json(manifest).items() if name != "merge"}
    manifest.write_text(json.dumps(steps))
    (folder.round(0) / "merge.json").unlink()
    on_factors = load_student(folder, torch.device("cpu"))
    assert HISTORY in next(on_factors.accumulator.current_layers()).active_adapters
    assert running.finish(words, log) == 0, log.read_text()
    assert Merged.load(folder.round(0)).taken


def test_a_student_on_merged_weights_trains_as_one_on_adapters(tiny_folder: Path):
    losses = []
    for model, accumulator in (student(tiny_folder, rounds=2), unmerged(tiny_folder, 2)):
        losses.append([entry.values["loss"] for entry in healed(model, accumulator, CONFIG)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
