"""The accumulator: gates, folding, what trains, and what is saved."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from heal.accumulator import CURRENT, HISTORY, Accumulator, linear_names
from heal.adapter_kinds import ADAPTER_KINDS
from heal.errors import UserError
from heal.models.language_model import LanguageModel
from heal.recipe import load_recipe
from tests.cases import case
from tests.closeness import assert_near
from tests.students import ALPHA, LAYERS, RANK, learn, logits, only_current_trains, put, student, weights
from tests.tiny import ARCHITECTURES, load, save


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each architecture on disk."""
    return {name: save(name, tmp_path_factory.mktemp(name)) for name in ARCHITECTURES}


def fresh(folders: dict[str, Path], architecture: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    settings = {"attention": "eager"} if architecture == "gemma2" else {}
    return load(folders[architecture], dtype, **settings)


def accumulated(language_model: LanguageModel, rounds: int) -> Accumulator:
    accumulator = Accumulator(language_model, RANK, ALPHA, LAYERS)
    for r in range(rounds):
        accumulator.start_round(r)
        learn(accumulator, r)
        accumulator.fold()
    return accumulator


def test_with_every_gate_off_any_round_is_the_base_bit_for_bit(folders: dict[str, Path]):
    for dtype in [torch.float32, torch.bfloat16]:
        for architecture in ARCHITECTURES:
            with case(dtype, architecture):
                model = fresh(folders, architecture, dtype)
                base = logits(model)
                accumulator = accumulated(model, 3)
                accumulator.start_round(3)
                learn(accumulator, 3)
                changed = logits(model)
                with accumulator.base():
                    assert torch.equal(logits(model), base)
                assert not torch.equal(changed, base)
                assert torch.equal(logits(model), changed)


def test_folding_changes_no_logits(folders: dict[str, Path]):
    for architecture in ARCHITECTURES:
        with case(architecture):
            model = fresh(folders, architecture)
            accumulator = Accumulator(model, RANK, ALPHA, LAYERS)
            for r in range(3):
                accumulator.start_round(r)
                learn(accumulator, r)
                unfolded = logits(model)
                with accumulator.previous():
                    assert (logits(model) - unfolded).abs().max() > 1e-2
                accumulator.fold()
                assert_near(logits(model), unfolded)


def test_going_back_is_the_student_as_it_was_then(tiny_folder: Path):
    for merge in (True, False):
        with case(merge):
            model = load(tiny_folder)
            accumulator = Accumulator(model, RANK, ALPHA, LAYERS, merge=merge)
            seen = []
            for r in range(3):
                accumulator.start_round(r)
                learn(accumulator, r)
                accumulator.fold()
                seen.append((logits(model), [b_OR.clone() for _, _, b_OR in accumulator.updates()]))
            for rounds in (2, 1):
                accumulator.go_back(rounds)
                then, factors = seen[rounds - 1]
                assert torch.equal(logits(model), then)
                assert all(torch.equal(b, old) for (_, _, b), old in zip(accumulator.updates(), factors, strict=True))
                assert (accumulator.rounds, accumulator.history_rank) == (rounds, rounds * RANK)
            with pytest.raises(ValueError, match="to round 2 of 1"):
                accumulator.go_back(2)


def test_folding_a_bfloat16_student_keeps_its_rounds_in_float32(tiny_folder: Path):
    model, accumulator = student(tiny_folder, torch.bfloat16, rounds=1)
    learn(accumulator, 1)
    unfolded = logits(model).float()
    history, current = weights(accumulator, f"lora_A.{HISTORY}"), weights(accumulator, f"lora_A.{CURRENT}")
    accumulator.fold()
    for name, stacked in weights(accumulator, f"lora_A.{HISTORY}").items():
        assert stacked.dtype == torch.float32
        assert torch.equal(stacked, torch.cat([history[name], current[name.replace(HISTORY, CURRENT)]]))
    assert (logits(model).float() - unfolded).abs().max() < 0.02 * unfolded.abs().max()


def test_a_fresh_round_changes_nothing(folders: dict[str, Path]):
    for architecture in ARCHITECTURES:
        with case(architecture):
            model = fresh(folders, architecture)
            accumulator = accumulated(model, 1)
            folded = logits(model)
            accumulator.start_round(5)
            assert torch.equal(logits(model), folded)


def test_a_gate_of_a_half_is_half_the_update_and_folding_at_it_keeps_that_student(tiny_folder: Path):
    # A gate of 1/2 on one round is that round with half its update.
    model, accumulator = student(tiny_folder, rounds=1)
    with accumulator.gates(0.5, 1.0):
        gated = logits(model)
    half_model, half = student(tiny_folder)
    half.start_round(0)
    learn(half, 0, size=0.025)
    assert_near(gated, logits(half_model))

    model, accumulator = student(tiny_folder, rounds=1)
    learn(accumulator, 1)
    with accumulator.gates(1.0, 0.5):
        gated = logits(model)
    accumulator.fold(0.5)
    assert_near(logits(model), gated)


def test_previous_is_the_student_without_its_current_round_even_where_that_learned_in_one_layer_alone(
    tiny_folder: Path,
):
    model, accumulator = student(tiny_folder, rounds=2)
    before = logits(model)
    learn(accumulator, 2)
    with accumulator.previous():
        assert torch.equal(logits(model), before)
    with accumulator.student():
        assert not torch.equal(logits(model), before)

    model, accumulator = student(tiny_folder, rounds=1)
    before = logits(model)
    weight = next(weight for name, weight in accumulator.trainable().items() if "lora_B" in name)
    with torch.no_grad():
        weight.fill_(0.05)
    changed = logits(model)
    assert not torch.equal(changed, before)
    with accumulator.student():
        assert torch.equal(logits(model), changed)
    with accumulator.previous():
        assert torch.equal(logits(model), before)


def test_a_new_accumulator_has_its_rank_its_scale_and_nothing_learned(tiny_folder: Path):
    accumulator = Accumulator(load(tiny_folder), RANK, ALPHA, LAYERS)
    for layer in accumulator.current_layers():
        assert (layer.r[CURRENT], layer.lora_alpha[CURRENT]) == (RANK, ALPHA)
        assert not layer.lora_B[CURRENT].weight.any()
    assert accumulator.trainable().keys() == {n for n, p in accumulator.peft_model.named_parameters() if "lora_" in n}


def test_only_current_trains_and_gets_gradients_after_folds_new_rounds_and_looks_at_the_base(tiny_folder: Path):
    assert only_current_trains(student(tiny_folder)[1])

    _, accumulator = student(tiny_folder)
    for r in range(3):
        accumulator.fold()
        assert only_current_trains(accumulator)
        accumulator.start_round(r)
        assert only_current_trains(accumulator)

    model, accumulator = student(tiny_folder, rounds=2)
    for context in (accumulator.base, accumulator.previous, accumulator.student):
        with context():
            logits(model)
            assert only_current_trains(accumulator)
        assert only_current_trains(accumulator)

    model, accumulator = student(tiny_folder, rounds=2)
    model.model(input_ids=torch.arange(3, 9)[None]).logits.square().mean().backward()
    with_gradient = {name for name, p in accumulator.peft_model.named_parameters() if p.grad is not None}
    assert with_gradient == set(accumulator.trainable())


def test_an_error_inside_a_gate_leaves_the_student_as_it_was(tiny_folder: Path):
    model, accumulator = student(tiny_folder, rounds=1)
    learn(accumulator, 1)
    before = logits(model)

    def fail() -> None:
        with accumulator.gates(0.0, 3.0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.equal(logits(model), before)
    assert only_current_trains(accumulator)


def test_the_rank_of_the_history_grows_by_that_of_a_round(tiny_folder: Path):
    _, accumulator = student(tiny_folder)
    assert accumulator.history_rank == 0
    for r in range(1, 4):
        accumulator.fold()
        assert accumulator.history_rank == r * RANK
        for _, a_RI, b_OR in accumulator.updates():
            assert a_RI.shape[0] == b_OR.shape[1] == r * RANK


def test_folding_keeps_the_scale_of_each_round(tiny_folder: Path):
    """The history's update is the sum of each round's own `gate * alpha / r * B A`."""
    _, accumulator = student(tiny_folder)
    expected: dict[str, torch.Tensor] = {}
    for r, gate in enumerate((1.0, 0.5, -2.0)):
        accumulator.start_round(r)
        learn(accumulator, r)
        a, b = weights(accumulator, "lora_A.current"), weights(accumulator, "lora_B.current")
        for name, a_RI in a.items():
            update = gate * ALPHA / RANK * b[name.replace("lora_A", "lora_B")] @ a_RI
            expected[name] = expected.get(name, 0) + update
        accumulator.fold(gate)
    found = {name: b_OR @ a_RI for name, a_RI, b_OR in accumulator.updates()}
    assert len(found) == len(expected)
    for name, update in expected.items():
        module = name.split("base_model.model.")[1].split(".lora_A")[0]
        torch.testing.assert_close(found[module], update, rtol=1e-5, atol=1e-6)


def test_a_fold_leaves_the_earlier_rounds_and_the_base_weights_bit_for_bit(tiny_folder: Path):
    _, accumulator = student(tiny_folder, rounds=2)
    before = {name: (a_RI.clone(), b_OR.clone()) for name, a_RI, b_OR in accumulator.updates()}
    learn(accumulator, 2)
    accumulator.fold()
    for name, a_RI, b_OR in accumulator.updates():
        assert torch.equal(a_RI[: 2 * RANK], before[name][0])
        assert torch.equal(b_OR[:, : 2 * RANK], before[name][1])

    model, accumulator = student(tiny_folder, rounds=2)
    original = dict(load(tiny_folder).model.named_parameters())
    with accumulator.base():
        kept = {
            name.replace(".base_layer", ""): weight
            for name, weight in model.model.named_parameters()
            if "lora_" not in name
        }
        assert kept.keys() == original.keys()
        assert all(torch.equal(weight, original[name]) for name, weight in kept.items())


def test_a_fresh_round_is_a_function_of_its_seed_alone_and_leaves_the_random_stream_alone(tiny_folder: Path):
    drawn = []
    for history, disturbance in ((0, 1), (0, 2), (2, 3)):
        _, accumulator = student(tiny_folder, rounds=history)
        torch.manual_seed(disturbance)
        accumulator.start_round(7)
        drawn.append(weights(accumulator, CURRENT))
    for other in drawn[1:]:
        assert other.keys() == drawn[0].keys()
        assert all(torch.equal(weight, drawn[0][name]) for name, weight in other.items())

    _, accumulator = student(tiny_folder)
    first = weights(accumulator, "lora_A")
    accumulator.start_round(8)
    assert not any(torch.equal(weight, first[name]) for name, weight in weights(accumulator, "lora_A").items())

    _, accumulator = student(tiny_folder)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    accumulator.start_round(7)
    assert torch.equal(torch.rand(3), expected)


def test_every_linear_layer_of_the_chosen_blocks_is_covered_and_nothing_else_such_as_a_vision_tower(
    folders: dict[str, Path],
):
    for architecture in ARCHITECTURES:
        with case(architecture):
            model = fresh(folders, architecture)
            names = linear_names(model, LAYERS)
            modules = dict(model.model.named_modules())
            wanted = [m for layer in LAYERS for m in model.blocks[layer].modules() if isinstance(m, nn.Linear)]
            assert {id(modules[name]) for name in names} == {id(module) for module in wanted}
            assert len(names) == len(wanted) >= 12
            Accumulator(model, RANK, ALPHA, LAYERS)
            carried = [name for name, module in model.model.named_modules() if hasattr(module, "lora_A")]
            assert sorted(carried) == names

    model = fresh(folders, "gemma3_nested")
    tower = [name for name, module in model.model.named_modules() if "vision" in name and isinstance(module, nn.Linear)]
    assert tower
    assert not any("vision" in name for name in linear_names(model, [0, 1, 2, 3]))


def test_another_alpha_is_another_scale(tiny_folder: Path):
    updates = []
    for alpha in (ALPHA, 2 * ALPHA):
        accumulator = Accumulator(load(tiny_folder), RANK, alpha, LAYERS)
        accumulator.start_round(0)
        learn(accumulator, 0)
        accumulator.fold()
        updates.append({name: b_OR @ a_RI for name, a_RI, b_OR in accumulator.updates()})
    for name, update in updates[0].items():
        torch.testing.assert_close(updates[1][name], 2 * update)


def test_a_gaussian_round_starts_as_the_base_too(tiny_folder: Path):
    model = load(tiny_folder)
    base = logits(model)
    accumulator = Accumulator(model, RANK, ALPHA, LAYERS, kind="gaussian")
    accumulator.start_round(0)
    assert torch.equal(logits(model), base)
    _, default = student(tiny_folder)
    assert not torch.equal(
        next(iter(weights(accumulator, "lora_A").values())), next(iter(weights(default, "lora_A").values()))
    )


def test_the_saved_tensors_are_float32_whatever_the_base(tiny_folder: Path, tmp_path: Path):
    _, accumulator = student(tiny_folder, torch.bfloat16)
    put(tmp_path, accumulator.save_current())
    assert {t.dtype for t in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}


def test_adapters_that_cannot_be_folded_are_refused_with_the_reason(tiny_folder: Path):
    for word, reason in (
        ("heal.use_dora=true", "DoRA .* cannot be folded"),
        ("heal.init=dora", "DoRA .* cannot be folded"),
        ("heal.init=pissa", "PiSSA .* base"),
    ):
        with case(word), pytest.raises(UserError, match=f"{word}: {reason}"):
            load_recipe(["recipe=smoke", word])
    model = load(tiny_folder)
    for kind, adapter in ADAPTER_KINDS.items():
        if adapter.refused:
            with case(kind), pytest.raises(UserError, match=f"heal.init={kind}: "):
                Accumulator(model, RANK, ALPHA, LAYERS, kind=kind)
    with pytest.raises(UserError, match="no such adapter; did you mean 'gaussian'"):
        Accumulator(model, RANK, ALPHA, LAYERS, kind="gausian")
