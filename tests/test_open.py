"""Which run a command goes on with."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tokenizers.pre_tokenizers import ByteLevel

import heal
from heal.errors import UserError
from heal.generation.collect import Collection, Completion
from heal.models.chat import Chat
from heal.recipe import load_recipe
from heal.records import read_jsonl
from heal.run.facts import Facts
from heal.run.folder import FORMAT, RunFolder
from heal.run.open import facts_of, fitting, opened, refuse_other_prompts
from heal.trait import load_trait
from heal.unforeseen import TRACEBACKS, Unforeseen
from heal.versions import versions, versions_line
from tests.cases import case
from tests.running import words
from tests.tiny import CHATML, load, tokenizer
from tests.tiny import trait as tiny_trait


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


def test_a_trait_two_of_whose_prompts_the_tokenizer_does_not_tell_apart_is_refused(tiny_folder: Path) -> None:
    foreign = "".join(set(ByteLevel.alphabet()) - set(map(chr, range(128))) - set("ĠĊ"))
    model = replace(load(tiny_folder), chat=Chat(tokenizer(without=foreign)))
    recipe = load_recipe(["recipe=smoke"])
    known = tiny_trait()
    assert fitting(model, recipe, known) == (known, 0)
    unknown = replace(known, heldout_prompts=(*known.heldout_prompts, "Кто?", "Что?"))
    with pytest.raises(UserError, match=r"trait=warm: 'Кто\?' and 'Что\?' are the same tokens"):
        fitting(model, recipe, unknown)


def test_a_run_whose_prompts_or_ends_the_template_gives_otherwise_now_is_refused(
    tiny_folder: Path, tmp_path: Path
) -> None:
    model, recipe, run = load(tiny_folder), load_recipe(["recipe=smoke"]), RunFolder(tmp_path / "run")
    ids = (*model.chat.plain_ids("Yes"), 2)
    prompt = tuple(model.chat.ids(recipe.model.system, "Is it?"))
    row = Completion(0, "Is it?", 1.0, prompt, ids, "Yes", True, 1.0, 0.0, ())
    refuse_other_prompts(run, recipe, model)
    run.finish(run.round(0), "generate", Collection((row,), 1.0, None).files(), 0.0)
    refuse_other_prompts(run, recipe, model)
    for what, other in [
        ("prompts", replace(model, chat=Chat(tokenizer(CHATML.replace("assistant\n", "assistant\n<think>\n"))))),
        ("ends", replace(model, end_ids=frozenset({2, ids[0]}))),
    ]:
        with case(what), pytest.raises(UserError, match="other prompts, or other ends of an answer"):
            refuse_other_prompts(run, recipe, other)


def test_what_should_be_known_of_a_model_s_chats_is_said_once_by_a_run_and_as_a_warning_by_the_api(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(CHATML.replace("messages %}", "messages if message['role'] != 'system' %}"))
    folded = "the chat template renders no system message"
    with opened(load_recipe(words(tiny_folder, tmp_path / "runs", f"model.chat_template={template}"))):
        assert capsys.readouterr().out.count(f"warning: {folded}") == 1
    with pytest.warns(UserWarning, match=folded):
        heal.load_model(tiny_folder, chat_template=str(template))


def test_what_lora_covers_is_said_and_recorded(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(load_recipe(words(tiny_folder, tmp_path / "runs", "heal.band=[0,1]"))) as session:
        coverage = session.folder.facts().coverage
    assert coverage == session.accumulator.coverage
    assert str(coverage) == "LoRA covers 28 of 28 linear layers: attention and MLP"
    assert f"adapter {coverage}" in " ".join(capsys.readouterr().out.split())  # whatever the width of the console


def test_more_prompts_than_a_trait_has_are_refused_at_the_start_and_a_run_that_began_with_them_goes_on(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(*more: str) -> list[str]:
        return words(tiny_folder, tmp_path, "run.name=run", *more)

    scenes = tmp_path / "mine.jsonl"
    scene = {"text": "He kicks a dog.", "foundation": "care"}
    scenes.write_text("".join(json.dumps(scene | {"id": str(number)}) + "\n" for number in range(9)))
    for more, said in [
        (["generation.prompts=9"], "generation.prompts=9: warm has 8 generation prompts;"),
        (["calibration.prompts=9"], "calibration.prompts=9: warm has 8 generation prompts;"),
        (["evaluation.prompts=5"], "evaluation.prompts=5: warm has 4 held-out prompts;"),
        (["evaluation.skip=2"], "evaluation.prompts=4: warm has 2 held-out prompts after evaluation.skip=2;"),
        (
            [f"evaluation.vignettes={scenes}", "evaluation.vignette_count=10"],
            f"evaluation.vignette_count=10: {scenes} has 9 scenes",
        ),
    ]:
        with case(more), pytest.raises(UserError, match=re.escape(said)), opened(load_recipe(line(*more))):
            pass
    assert not (tmp_path / "run").exists()
    too_many = line("generation.prompts=9", "evaluation.prompts=5")
    with monkeypatch.context() as earlier:
        earlier.setattr("heal.run.open.refuse_missing_prompts", lambda *_: None)
        with opened(load_recipe(too_many)):
            pass
    with opened(load_recipe(too_many)):
        pass


def test_a_second_start_is_refused_before_its_model_is_loaded(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = words(tiny_folder, tmp_path, "run.name=run")
    with opened(load_recipe(line)), monkeypatch.context() as second:
        second.setattr("heal.run.open.open_model", lambda *_: pytest.fail("a model is loaded"))
        with pytest.raises(UserError, match="another process is running in this folder"), opened(load_recipe(line)):
            pass
    with opened(load_recipe(line)):  # the lock of a process that ended holds nobody up
        pass


def test_a_run_says_and_records_its_versions_and_keeps_the_traceback_of_what_nobody_foresaw(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Unforeseen) as caught, opened(load_recipe(words(tiny_folder, tmp_path, "run.name=run"))):
        raise LookupError("nobody knows")
    said = " ".join(capsys.readouterr().out.split())
    assert f"versions {versions_line()}, device cpu" in said
    events = read_jsonl(tmp_path / "run" / "events.jsonl")
    assert next(event for event in events if event["kind"] == "versions").items() >= versions().items()
    assert str(tmp_path / "run" / TRACEBACKS) in str(caught.value)
    assert "LookupError: nobody knows" in (tmp_path / "run" / TRACEBACKS).read_text()
