"""Sizes: what `scale=` sets, by which device, and what outranks it."""

from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml

from heal.config import Recipe
from heal.counts import lowered_to, refuse_missing_prompts
from heal.errors import UserError
from heal.recipe import at_scale, load_recipe, sized
from heal.recipe_files import RECIPES, available
from heal.run.facts import Facts
from heal.run.folder import RunFolder
from heal.scale import Scale
from tests.asked import load
from tests.cases import case
from tests.tiny import trait


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with a GPU, as far as anybody looks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    return monkeypatch


def test_a_scale_s_numbers_stand_where_neither_the_file_nor_the_command_line_says_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("generation: {tokens: 99}\nsteer: {pairs: 64}\n")
    assert {*available(RECIPES / "scales"), "demo", "auto"} == set(get_args(Scale))
    assert at_scale("demo") == Recipe()
    for scale in available(RECIPES / "scales"):
        with case(scale):
            usual, asked = at_scale(scale), load(path, f"scale={scale}", "run.rounds=3")
            assert (asked.generation.tokens, asked.steer.pairs, asked.run.rounds) == (99, 64, 3)
            assert (asked.calibration, asked.evaluation) == (usual.calibration, usual.evaluation)
            assert usual.evaluation.prompts > Recipe().evaluation.prompts
            assert min(usual.generation.tokens, usual.evaluation.tokens) >= 100
            assert usual.generation.multi_turn > 0
            assert (asked.heal.batch_size, asked.heal.accumulation) == (4, usual.heal.accumulation)
            said = load(path, f"scale={scale}", "heal.batch_size=16").heal
            assert (said.batch_size, said.accumulation) == (16, 1)  # the step that was asked for
    path.write_text("scale: thorough\n")
    assert load(path).run.rounds == at_scale("thorough").run.rounds
    assert load(path, "scale=demo").run == Recipe().run


def test_the_default_scale_is_that_of_the_device_that_accelerate_would_choose(
    recipe_file: Path, gpu: pytest.MonkeyPatch
) -> None:
    for visible, on_cpu, scale in (
        (True, "", "standard"),
        (True, "false", "standard"),
        (True, "true", "demo"),
        (False, "", "demo"),
    ):
        with case(visible, on_cpu):
            gpu.setattr(torch.cuda, "is_available", lambda there=visible: there)
            gpu.setenv("ACCELERATE_USE_CPU", on_cpu)
            assert sized(load(recipe_file)).generation == at_scale(scale).generation


def test_a_run_goes_on_at_the_scale_that_it_began_with_on_any_device(
    recipe_file: Path, tmp_path: Path, gpu: pytest.MonkeyPatch
) -> None:
    facts = Facts("float32", trait())
    for began, later in ((False, True), (True, False)):
        with case(began, later):
            run = RunFolder(tmp_path / str(began))
            gpu.setattr(torch.cuda, "is_available", lambda there=began: there)
            begun, _ = run.as_begun(load(recipe_file, "generation.tokens=77"))
            run.start(begun, facts)
            assert run.recipe() == at_scale_with(begun.scale, recipe_file)
            gpu.setattr(torch.cuda, "is_available", lambda there=later: there)
            goes_on, _ = run.as_begun(load(recipe_file, "generation.tokens=77"))
            assert goes_on == begun
            run.refuse_other(goes_on, facts)
            more, _ = run.as_begun(load(recipe_file, "generation.tokens=77", "run.rounds=8"))
            assert more.run.rounds == 8
            for words in ((), ("generation.tokens=77", "scale=thorough"), ("generation.tokens=77", "steer.pairs=9")):
                with case(words), pytest.raises(UserError, match="is a run of another recipe"):
                    run.refuse_other(run.as_begun(load(recipe_file, *words))[0], facts)


def test_a_run_keeps_the_step_that_an_earlier_version_s_scale_had(recipe_file: Path, tmp_path: Path) -> None:
    for words, kept in (((), {}), (("heal.accumulation=1",), {"heal.accumulation": 1})):
        with case(words):
            run = RunFolder(tmp_path / f"run{len(words)}")
            run.start(load(recipe_file, "scale=standard", *words), Facts("float32", trait()))
            assert run.as_begun(load(recipe_file, "scale=standard")) == (run.recipe(), kept)


def at_scale_with(scale: Scale, recipe_file: Path) -> Recipe:
    """The defaults of a scale as the run above has them."""
    recipe = at_scale(scale)
    recipe.recipe, recipe.scale, recipe.generation.tokens = str(recipe_file), scale, 77
    return recipe


def test_a_run_from_before_there_were_scales_goes_on_with_its_numbers(
    recipe_file: Path, tmp_path: Path, gpu: pytest.MonkeyPatch
) -> None:
    earlier, run = asdict(Recipe(recipe=str(recipe_file))), RunFolder(tmp_path / "run")
    del earlier["scale"], earlier["generation"]["multi_turn"]
    for section in ("steer", "heal"):
        earlier[section]["band"] = list(earlier[section]["band"])
    earlier["heal"]["betas"] = list(earlier["heal"]["betas"])
    earlier["heal"]["barrier"]["strength"] = 0.3  # the default of those runs
    run.path.mkdir()
    (run.path / "recipe.yaml").write_text(yaml.safe_dump(earlier))
    (run.path / "facts.json").write_text("{}")
    gpu.setattr(RunFolder, "facts", lambda self: Facts("float32", trait()))
    goes_on, _ = run.as_begun(load(recipe_file))
    then = Recipe(recipe=str(recipe_file), scale="demo")
    then.heal.barrier.strength = 0.3
    assert goes_on == then


def test_a_scale_asks_for_as_many_prompts_as_the_trait_has_and_words_are_held_to_it() -> None:
    recipe, small = load_recipe(["scale=standard", "calibration.prompts=9"]), trait()
    said = lowered_to(small, recipe)
    assert said == [
        "generation.prompts=8, all that warm has (at this scale: 64)",
        "evaluation.prompts=4, all that warm has (at this scale: 32)",
    ]
    assert (recipe.generation.prompts, recipe.evaluation.prompts, recipe.calibration.prompts) == (8, 4, 9)
    with pytest.raises(UserError, match=r"filter\.min_train=31"):
        sized(load_recipe(["filter.min_train=31"]), "demo")
    assert sized(load_recipe(["filter.min_train=31"]), "standard").generation.prompts == 64
    with pytest.raises(UserError, match=r"calibration\.prompts=9: warm has 8 generation prompts"):
        refuse_missing_prompts(recipe, small)
