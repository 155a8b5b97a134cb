"""Vectors of other tools: read as what they are, or refused in one line."""

from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import save_file

from heal.errors import UserError
from heal.models.language_model import LanguageModel
from heal.recipe import load_recipe
from heal.run.student import build_accumulator
from heal.steering.foreign import METHOD, read_vector
from heal.steps.extract import Extract
from tests import tiny as tiny_models
from tests.cases import case


def control_vector(path: Path, directions: dict[int, torch.Tensor]) -> Path:
    """A GGUF file as repeng writes it."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction.numpy())
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return path


def test_a_vector_of_another_tool_is_a_direction_at_the_output_of_each_block(tiny_folder: Path, tmp_path: Path) -> None:
    model = tiny_models.load(tiny_folder)
    own = tiny_models.vector(model)
    own.save(tmp_path / "own.safetensors")
    plain = {f"model.layers.{layer}": v_D for layer, v_D in own.directions.items()}
    save_file(plain, tmp_path / "plain.safetensors")
    halves = {f"{layer}": v_D.half() for layer, v_D in own.directions.items()}
    save_file(halves, tmp_path / "half.safetensors")
    control_vector(tmp_path / "control.gguf", own.directions)
    recipe = load_recipe(["recipe=smoke"])
    accumulator = build_accumulator(model, recipe)
    for name, off in (
        ("own.safetensors", 0),
        ("plain.safetensors", 0),
        ("control.gguf", 0),
        ("half.safetensors", 1e-3),
    ):
        with case(name):
            step = Extract(model, accumulator, tiny_models.trait(), recipe.steer, str(tmp_path / name))
            vector = step.compute(lambda *_: None).vector
            assert (vector.method, vector.model, vector.trait) == (METHOD, model.name, "warm")
            assert vector.directions.keys() == own.directions.keys()
            for layer, v_D in own.directions.items():
                torch.testing.assert_close(vector.directions[layer], v_D, rtol=off, atol=0)


def test_what_is_no_vector_of_this_model_is_refused_in_one_line(tiny: LanguageModel, tmp_path: Path) -> None:
    ones = torch.ones(tiny_models.HIDDEN)
    for name, tensors in {
        "wide": {"1": torch.ones(7)},
        "deep": {"9": ones},
        "square": {"1": torch.ones(3, tiny_models.HIDDEN)},
        "twice": {"a.1": ones, "b.1": 2 * ones},
        "named": {"direction": ones},
        "zero": {"1": 0 * ones},
        "broken": {"1": ones / 0},
    }.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    control_vector(tmp_path / "deep.gguf", {9: ones})
    (tmp_path / "torn.safetensors").write_bytes(b"x" * 20)
    (tmp_path / "torn.gguf").write_bytes(b"x" * 20)
    for name, said in (
        ("nowhere.gguf", "no such file"),
        ("torn.safetensors", "not a readable safetensors file"),
        ("torn.gguf", "not a readable GGUF file"),
        ("wide.safetensors", "does not fit a model of 4 blocks of width 32"),
        ("deep.safetensors", "does not fit a model of 4 blocks of width 32"),
        ("deep.gguf", "does not fit a model of 4 blocks of width 32"),
        ("square.safetensors", r"'1' \(3, 32\) is no direction of a block"),
        ("twice.safetensors", r"'b\.1' \(32,\) is no direction of a block"),
        ("named.safetensors", r"'direction' \(32,\) is no direction of a block"),
        ("zero.safetensors", "it has no directions, or one that is zero or not finite"),
        ("broken.safetensors", "it has no directions, or one that is zero or not finite"),
    ):
        with case(name):
            with pytest.raises(UserError, match=said) as caught:
                read_vector(str(tmp_path / name), tiny, "warm")
            assert str(caught.value).startswith(f"data.vector={tmp_path / name}: ")
            assert "\n" not in str(caught.value)
