"""Weight differences as interventions: what they do to a model, and how they are kept on disk."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from heal.decoding import decode
from heal.errors import UserError
from heal.models.language_model import LanguageModel
from heal.scoring import completion_states
from heal.steering.load import load_intervention
from heal.steering.vector import SteeringVector
from heal.steering.weights import Update, WeightDifference, linear_at
from tests import tiny as tiny_models
from tests.cases import case
from tests.differences import difference
from tests.students import student
from tests.tiny import load, prompts, sized, vector


@torch.no_grad()
def logits(language_model: LanguageModel, ids: Sequence[int]) -> Tensor:
    return language_model.model(input_ids=torch.tensor([list(ids)])).logits[0]


def hook_count(language_model: LanguageModel) -> int:
    return sum(len(module._forward_hooks) for module in language_model.model.modules())


def save(intervention: WeightDifference | SteeringVector, folder: Path) -> Path:
    path = folder / "intervention.safetensors"
    path.write_bytes(intervention.to_bytes())
    return path


@torch.no_grad()
def with_weights(language_model: LanguageModel, change: WeightDifference, c: float) -> LanguageModel:
    """A copy whose weights are `W + c dW`."""
    changed = replace(language_model, model=copy.deepcopy(language_model.model))
    for name, update in change.updates.items():
        module = linear_at(changed, name)
        module.weight += c * update.weight().to(module.weight.dtype)
        if update.bias_O is not None:
            bias_O = torch.zeros_like(update.bias_O) if module.bias is None else module.bias
            module.bias = torch.nn.Parameter(bias_O + c * update.bias_O)
    return changed


# Applying


def test_coefficient_zero_is_the_model_itself_bit_for_bit(architectures: dict[str, LanguageModel]):
    for name, model in architectures.items():
        with case(name):
            ids = prompts(model)[2]
            before = logits(model, ids)
            with difference(model, size=1e3).applied(model, 0.0):
                assert torch.equal(logits(model, ids), before)


def test_a_coefficient_gives_the_logits_of_the_changed_weights(architectures: dict[str, LanguageModel]):
    for (name, model), c in product(architectures.items(), (1.0, -0.7)):
        with case(name, c):
            ids, change = prompts(model)[2], difference(model)
            expected = logits(with_weights(model, change, c), ids)
            with change.applied(model, c):
                shifted = logits(model, ids)
            torch.testing.assert_close(shifted, expected, rtol=1e-3, atol=2e-3)
            assert not torch.allclose(shifted, logits(model, ids), atol=0.1)


def test_rows_are_shifted_in_a_batch_a_packed_pass_and_decoding_as_each_alone(
    architectures: dict[str, LanguageModel], tiny: LanguageModel
):
    coefficients = [0.0, 1.0, -0.5]
    for name, model in architectures.items():
        with case(name):
            ids, change = prompts(model)[2], difference(model)
            with torch.no_grad(), change.applied(model, coefficients):
                together = model.model(input_ids=torch.tensor([ids] * len(coefficients))).logits
            for row, coefficient in enumerate(coefficients):
                with change.applied(model, coefficient):
                    torch.testing.assert_close(together[row], logits(model, ids), rtol=1e-4, atol=1e-3)

    prompt = tiny.chat.ids("a system prompt", "hungry elk")
    rows, said = [prompt, prompt, prompts(tiny)[1]], [[5, 6, 7], [5, 9], [8, 8, 4]]
    change = difference(tiny)
    with torch.no_grad(), change.applied(tiny, 0.5):
        together = completion_states(tiny, rows, said)
        alone = [completion_states(tiny, [row], [ids])[0] for row, ids in zip(rows, said, strict=True)]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

    rows = prompts(tiny, 4)
    change, coefficients = difference(tiny), [0.0, 0.5, 1.0, -1.0]
    many, one = (decode(sized(tiny, rows=size), rows, 6, change, coefficients) for size in (4, 1))
    assert [completion.ids for completion in many] == [completion.ids for completion in one]
    assert many != decode(tiny, rows, 6)


def test_a_bfloat16_model_is_rounded_once_at_each_output(tiny_folder: Path):
    model = load(tiny_folder, torch.bfloat16)
    name = "model.layers.1.mlp.down_proj"
    update = Update((torch.randn(32, 48, generator=torch.Generator().manual_seed(0)),))
    module = linear_at(model, name)
    x_BTI = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    plain_BTO = module(x_BTI)
    with WeightDifference({name: update}, "weight_difference", model.name, "warm").applied(model, 0.3):
        found_BTO = module(x_BTI)
    expected_BTO = (plain_BTO.float() + 0.3 * (x_BTI.float() @ update.factors[0].T)).bfloat16()
    assert found_BTO.dtype == torch.bfloat16
    torch.testing.assert_close(found_BTO, expected_BTO, rtol=1e-2, atol=1e-6)
    before = logits(model, prompts(model)[1])
    with difference(model).applied(model, 0.0):
        assert torch.equal(logits(model, prompts(model)[1]), before)


def test_the_weights_are_not_touched_and_no_hook_is_left(tiny: LanguageModel):
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    change = difference(tiny)
    with change.applied(tiny, 2.0):
        assert hook_count(tiny) == len(change.updates)
        logits(tiny, prompts(tiny)[0])
    assert hook_count(tiny) == 0
    assert all(torch.equal(weight, before[name]) for name, weight in tiny.model.state_dict().items())


def test_a_model_that_carries_adapters_is_shifted_as_a_plain_one(tiny_folder: Path):
    for merge in [True, False]:
        with case(merge):
            plain = load(tiny_folder)
            model, accumulator = student(tiny_folder, rounds=1, merge=merge)
            change, ids = difference(plain), prompts(plain)[2]
            with change.applied(plain, 0.8):
                expected = logits(plain, ids)
            with accumulator.base(), change.applied(model, 0.8):
                assert torch.equal(logits(model, ids), expected)
            with accumulator.student():
                before = logits(model, ids)
                with change.applied(model, 0.0):
                    assert torch.equal(logits(model, ids), before)


def test_the_norm_is_that_of_the_dense_matrices(tiny: LanguageModel):
    change = difference(tiny)
    dense = torch.cat([update.weight().flatten() for update in change.updates.values()])
    assert change.norm == pytest.approx(float(dense.norm()), rel=1e-5)


# What does not fit


def test_a_difference_of_another_model_or_with_a_linear_that_does_not_fit_is_refused(tiny: LanguageModel):
    other = replace(difference(tiny), model="another")
    with pytest.raises(UserError, match="of model 'another' was applied to"), other.applied(tiny, 1.0):
        pass

    for name, shape, message in [
        ("model.layers.9.mlp.down_proj", (32, 48), "model.layers.9.mlp.down_proj does not fit"),
        ("model.layers.1.mlp", (32, 48), "no Linear"),
        ("model.layers.1.mlp.down_proj", (48, 32), r"shape \[48, 32\] does not fit"),
    ]:
        with case(name, shape, message):
            change = WeightDifference({name: Update((torch.zeros(shape),))}, "weight_difference", tiny.name, "warm")
            with pytest.raises(UserError, match=message), change.applied(tiny, 1.0):
                pass
            assert hook_count(tiny) == 0


# On disk


def test_a_difference_comes_back_from_disk_as_it_was_and_always_gives_the_same_bytes(
    tiny: LanguageModel, tmp_path: Path
):
    change = difference(tiny).with_c_star(0.75)
    loaded = load_intervention(save(change, tmp_path))
    assert isinstance(loaded, WeightDifference)
    assert replace(loaded, updates={}) == replace(change, updates={})
    assert list(loaded.updates) == sorted(change.updates)
    for name, update in change.updates.items():
        same = loaded.updates[name]
        assert len(same.factors) == len(update.factors)
        assert all(torch.equal(a, b) for a, b in zip(same.factors, update.factors, strict=True))
        assert (same.bias_O is None) == (update.bias_O is None)
        assert update.bias_O is None or torch.equal(same.bias_O, update.bias_O)

    change = difference(tiny)
    turned = replace(change, updates=dict(reversed(change.updates.items())))
    assert len({each.to_bytes() for each in (change, change, turned)}) == 1
    assert change.with_c_star(1.0).to_bytes() != change.to_bytes()


def test_a_file_says_itself_which_intervention_it_holds_and_a_vector_is_no_difference(
    tiny: LanguageModel, tmp_path: Path
):
    assert isinstance(load_intervention(save(vector(tiny), tmp_path)), SteeringVector)
    assert isinstance(load_intervention(save(difference(tiny), tmp_path)), WeightDifference)

    with pytest.raises(UserError, match="not a weight difference"):
        WeightDifference.load(save(vector(tiny), tmp_path))
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(UserError, match="neither"):
        load_intervention(other)


def test_garbage_a_missing_file_and_one_that_is_no_difference_are_refused(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    for content in [None, b"", b"no safetensors file", b"\x00" * 64]:
        if content is not None:
            path.write_bytes(content)
        for read in (WeightDifference.load, load_intervention):
            with case(content, read), pytest.raises(UserError, match=r"x\.safetensors: not a"):
                read(path)

    for tensors, changes, message in [
        ({"l:W": torch.zeros(2, 3)}, {"kind": "wish"}, "unknown kind"),
        ({"l:W": torch.zeros(2, 3)}, {"c_star": "x"}, "not a weight difference"),
        ({}, {}, "no weights"),
        ({"l:A": torch.zeros(2, 3)}, {}, "has the parts A"),
        ({"l:W": torch.zeros(2, 3), "l:A": torch.zeros(1, 3)}, {}, "has the parts A, W"),
        ({"l:A": torch.zeros(2, 3), "l:B": torch.zeros(4, 3)}, {}, "do not fit each other"),
        ({"l:W": torch.zeros(2, 3), "l:b": torch.zeros(3)}, {}, "do not fit each other"),
        ({"l:W": torch.zeros(2, 3).half()}, {}, "not float32"),
    ]:
        with case(tensors, changes, message):
            path = tmp_path / "x.safetensors"
            save_file(tensors, path, metadata=_SAID | changes)
            with pytest.raises(UserError, match=message):
                load_intervention(path)


_SAID = {"kind": "weight_difference", "model": "m", "trait": "t", "c_star": "null", "settings": "{}"}


def test_a_difference_names_the_linears_of_a_nested_model_in_full(tmp_path: Path):
    nested = tiny_models.load_architecture("gemma3_nested", tmp_path)
    assert all(name.startswith("model.language_model.layers.") for name in difference(nested).updates)
