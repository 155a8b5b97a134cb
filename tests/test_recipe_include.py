"""A recipe that includes another one: what counts, and which file a mistake is in."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from heal.config import Recipe
from heal.recipe import from_mapping, to_yaml
from tests.cases import case
from tests.test_recipe import load, refusal


@pytest.fixture
def common(tmp_path: Path) -> Path:
    """A file that others include."""
    path = tmp_path / "common.yaml"
    path.write_text("heal: {rank: 4, epochs: 3, barrier: {tau: 0.25, strength: 2}}\nrun.rounds: 7\n")
    return path


def including(folder: Path, content: str = "", name: str = "arm.yaml") -> Path:
    path = folder / name
    path.write_text(f"include: common.yaml\n{content}")
    return path


def test_what_a_recipe_includes_comes_first_and_the_recipe_overrides_it(common: Path):
    recipe = load(including(common.parent, "heal: {epochs: 5, barrier: {tau: 0.75}}\n"))
    assert (recipe.heal.rank, recipe.heal.epochs, recipe.run.rounds) == (4, 5, 7)
    assert (recipe.heal.barrier.tau, recipe.heal.barrier.strength) == (0.75, 2.0)
    assert recipe.heal.alpha == Recipe().heal.alpha


def test_the_command_line_overrides_both(common: Path):
    arm = including(common.parent, "heal: {epochs: 5}\n")
    recipe = load(arm, "heal.epochs=6", "heal.rank=8")
    assert (recipe.heal.epochs, recipe.heal.rank) == (6, 8)


def test_including_a_file_is_the_same_as_writing_its_keys_in_front(common: Path):
    for content in ["", "heal: {epochs: 5}\n", "heal.epochs: 5\nrun: {rounds: 2}\n"]:
        with case(content):
            arm, whole = including(common.parent, content), common.parent / "whole.yaml"
            flat = [
                "heal.rank: 4",
                "heal.epochs: 3",
                "heal.barrier.tau: 0.25",
                "heal.barrier.strength: 2",
                "run.rounds: 7",
            ]
            kept = [line for line in flat if line.split(":")[0].split(".")[-1] not in content]
            whole.write_text("\n".join([*kept, content]))
            assert replace(load(arm), recipe="") == replace(load(whole), recipe="")


def test_a_recipe_keeps_its_own_name(common: Path):
    arm = including(common.parent)
    assert load(arm).recipe == str(arm)


def test_an_included_file_is_looked_for_beside_the_file_that_names_it(common: Path, monkeypatch: pytest.MonkeyPatch):
    elsewhere = common.parent / "elsewhere"
    elsewhere.mkdir()
    arm = including(common.parent)
    monkeypatch.chdir(elsewhere)
    assert load(arm).heal.rank == 4


def test_an_included_file_that_is_not_there_is_named_with_the_file_that_wants_it(tmp_path: Path):
    arm = including(tmp_path)
    message = refusal(arm)
    assert str(arm) in message
    assert str(tmp_path / "common.yaml") in message
    assert "no such file" in message


def test_an_included_file_cannot_include_another_one(common: Path):
    middle = including(common.parent, name="middle.yaml")
    arm = common.parent / "outer.yaml"
    arm.write_text("include: middle.yaml\n")
    message = refusal(arm)
    assert str(middle) in message
    assert "cannot include another one" in message


def test_a_mistake_in_an_included_file_names_that_file_and_one_outside_it_the_other(common: Path):
    common.write_text("heal: {rnak: 4}\n")
    arm = including(common.parent)
    message = refusal(arm)
    assert f"in {common}" in message
    assert "did you mean 'heal.rank'" in message
    common.write_text("heal: {rank: 4}\n")
    assert f"in {including(common.parent, 'heal: {rnak: 4}')}" in refusal(arm)


def test_a_value_out_of_range_in_an_included_file_names_that_file(common: Path):
    common.write_text("run: {rounds: 0}\n")
    assert f"in {common}" in refusal(including(common.parent))


def test_an_included_file_that_is_not_a_mapping_is_named(common: Path):
    common.write_text("- a list\n")
    assert refusal(including(common.parent)).startswith(str(common))


def test_a_resolved_recipe_includes_nothing_any_more(common: Path):
    recipe = load(including(common.parent))
    assert "include" not in yaml.safe_load(to_yaml(recipe))
    assert from_mapping(yaml.safe_load(to_yaml(recipe)), "recipe.yaml") == recipe
