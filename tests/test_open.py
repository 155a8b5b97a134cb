"""Which run a command goes on with."""

import re
from functools import partial
from pathlib import Path

import pytest

import heal
from heal.errors import UserError
from heal.recipe import load_recipe
from heal.run.folder import FORMAT, Facts, RunFolder
from heal.run.open import facts_of, opened
from heal.trait import load_trait
from tests.running import words


def test_scenes_or_a_template_that_were_edited_are_not_continued_with(tmp_path: Path) -> None:
    scenes, template, run = tmp_path / "mine.jsonl", tmp_path / "mine.jinja", RunFolder(tmp_path / "run")
    recipe = load_recipe(["recipe=smoke", f"evaluation.vignettes={scenes}", f"model.chat_template={template}"])
    for path in (scenes, template):
        path.write_text("first")
    facts = partial(facts_of, recipe, load_trait("love"), "float32")
    run.start(recipe, facts())
    run.refuse_other(recipe, facts())
    for path, name in ((scenes, "vignettes"), (template, "chat_template")):
        path.write_text("second")
        with pytest.raises(UserError, match=f"{name}: changed since the run started"):
            run.refuse_other(recipe, facts())
        path.write_text("first")
    template.unlink()
    with pytest.raises(UserError, match=r"model\.chat_template=\S+: no such file"):
        facts()


def test_what_comes_with_heal_is_not_held_against_a_run() -> None:
    trait = load_trait("love")
    for scenes in ("none", "embedded"):
        recipe = load_recipe(["recipe=smoke", f"evaluation.vignettes={scenes}"])
        assert facts_of(recipe, trait, "float32") == Facts("float32", trait, format=FORMAT, heal=heal.__version__)


def test_a_run_is_opened_again_only_with_the_scenes_that_it_started_with(tiny_folder: Path, tmp_path: Path) -> None:
    scenes = tmp_path / "mine.jsonl"
    scenes.write_text('{"id": "1", "text": "He kicks a dog.", "foundation": "care"}\n')
    line = words(tiny_folder, tmp_path / "runs", f"evaluation.vignettes={scenes}", "compute.threads=1")
    for _ in range(2):
        with opened(load_recipe(line)) as session:
            assert len(session.vignettes) == 1
    scenes.write_text('{"id": "1", "text": "She kicks a dog.", "foundation": "care"}\n')
    with pytest.raises(UserError, match="vignettes: changed since the run started"), opened(load_recipe(line)):
        pass


def test_a_tilde_in_the_root_of_the_runs_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    taken = tmp_path / "runs" / "there"
    taken.mkdir(parents=True)
    (taken / "thesis.txt").write_text("mine")
    recipe = load_recipe(["recipe=smoke", "run.root=~/runs", "run.name=there"])
    with pytest.raises(UserError, match=re.escape(f"{taken}: the folder holds something")), opened(recipe):
        pass
