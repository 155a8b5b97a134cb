"""The recipe: what is accepted, what is refused, and how the refusal helps."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import heal
from heal import recipe as recipes
from heal.config import Recipe
from heal.errors import UserError
from heal.keys import help_text, keys
from heal.recipe import RECIPES, check, find_yaml, from_mapping, load_recipe, parse_words, to_mapping, to_yaml
from tests.asked import load, refusal
from tests.cases import case

ROOT = Path(__file__).resolve().parent.parent


def test_the_defaults_and_the_ends_of_a_range_are_a_valid_recipe(recipe_file: Path):
    check(Recipe())
    assert load(recipe_file) == Recipe(recipe=str(recipe_file))

    for key in keys():
        if key.default not in (None, "") and key.name != "recipe":
            value = list(key.default) if isinstance(key.default, tuple) else key.default
            load(recipe_file, f"{key.name}={value}")

    recipe = load(recipe_file, "heal.band=[0,1]", "generation.top_p=1", "generation.temperature=0", "run.rounds=1")
    assert (recipe.heal.band, recipe.generation.top_p, recipe.run.rounds) == ((0.0, 1.0), 1.0, 1)


def test_the_file_overrides_the_defaults_and_the_command_line_overrides_the_file(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("heal:\n  rank: 4\n  barrier: {tau: 0.25}\nrun.rounds: 7\n")
    recipe = load(path, "heal.rank=6")
    assert (recipe.heal.rank, recipe.heal.barrier.tau, recipe.run.rounds) == (6, 0.25, 7)
    assert recipe.heal.alpha == Recipe().heal.alpha


def test_an_unknown_key_or_recipe_names_the_nearest_one_or_all_that_there_are(recipe_file: Path, tmp_path: Path):
    for word, near in [
        ("heal.rnak=4", "heal.rank"),
        ("heal.barrier.taau=1", "heal.barrier.tau"),
        ("calibration.targett=1", "calibration.target"),
        ("triat=love", "trait"),
    ]:
        with case(word, near):
            assert f"did you mean '{near}'" in refusal(recipe_file, word)

    path = tmp_path / "typo.yaml"
    path.write_text("heal:\n  rnak: 4\n")
    message = refusal(path)
    assert str(path) in message
    assert "did you mean 'heal.rank'" in message

    for name in ("kl_rev_rmse", "nll"):
        (tmp_path / f"{name}.yaml").touch()
    with pytest.raises(UserError, match=r"recipe=kl_rev_rmze: no such recipe; did you mean 'kl_rev_rmse'"):
        find_yaml("recipe", "kl_rev_rmze", tmp_path)

    for name in ("kl_rev_rmse", "nll"):
        (tmp_path / f"{name}.yaml").touch()
    with pytest.raises(UserError, match=r"valid: kl_rev_rmse, nll"):
        find_yaml("recipe", "zzzzzz", tmp_path)

    with pytest.raises(UserError, match=r"recipe=nowhere/mine.yaml: no such file"):
        load_recipe(["recipe=nowhere/mine.yaml"])


def test_a_value_of_a_wrong_type_is_refused_and_names_the_key(recipe_file: Path):
    for word in [
        "heal.rank=many",
        "heal.rank=2.5",
        "heal.rank=1e1",
        "heal.rank=true",
        "heal.rank=null",
        "heal.rank=",
        "heal.rank=[4]",
        "run.rounds=inf",
        "model.load_4bit=perhaps",
        "model.dtype=float64",
        "heal.barrier.divergence=kl",
        "heal.band=0.3",
        "heal.band=[0.3]",
        "heal.band=[0.1,0.2,0.3]",
        "heal.band=[a,b]",
        "generation.alphas=1",
        "generation.alphas=[null]",
        "generation.alphas=[[1]]",
        "generation.alphas=[{a: 1}]",
        "generation.alphas=['???']",
        "evaluation.doses=[[1]]",
        "run.seed=2024-01-01",
        "run.seed=2024-13-45",
        "run.seed=0x10",
        "run.seed=1:30",
        "model.load_4bit=null",
        "heal.barrier.strength=automatic",
        "heal.barrier.strength=null",
        "heal.barrier.strength=",
        "heal.barrier.strength=[1]",
        "steer.band=automatic",
        "steer.band=null",
        "steer.band=",
        "steer.band=[auto,1]",
        "steer.method=null",
        "steer.method=",
    ]:
        with case(word):
            message = refusal(recipe_file, word)
            assert message.startswith(word.partition("=")[0])
            assert "expected" in message


def test_a_value_out_of_range_is_refused_and_names_the_key(recipe_file: Path):
    for word in [
        "run.rounds=0",
        "run.seed=-1",
        "heal.learning_rate=-1e-4",
        "heal.learning_rate=nan",
        "heal.learning_rate=.nan",
        "heal.barrier.power=nan",
        "heal.validation=0.6",
        "heal.band=[0.5,1.5]",
        "heal.band=[-1e-1,0.5]",
        "heal.band=[nan,0.5]",
        "heal.betas=[0.9,.nan]",
        "generation.alphas=[1e-9]",
        "generation.alphas=[0.5,-1]",
        "generation.alphas=[.inf]",
        "evaluation.doses=[1,inf]",
        "calibration.target=inf",
        "heal.learning_rate=.inf",
        "heal.betas=[0.9,1]",
        "generation.top_p=0",
        "filter.min_on_prompt=1.1",
        "filter.min_on_prompt=-0.1",
        "evaluation.max_accuracy_fall=1.1",
        "evaluation.max_accuracy_fall=-0.1",
        "evaluation.max_identified_fall=1.1",
        "evaluation.questions=241",
    ]:
        with case(word):
            message = refusal(recipe_file, word)
            assert message.startswith(word.partition("=")[0])
            assert "out of range, must be " in message


def test_no_more_can_be_asked_for_than_there_is(recipe_file: Path):
    for name, file in [
        ("steer.pairs", "contexts"),
        ("evaluation.questions", "questions"),
        ("evaluation.neutral_texts", "neutral"),
    ]:
        with case(name, file):
            there = len(
                (Path(heal.__file__).parent / "data" / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
            )
            load(recipe_file, f"{name}={there}")
            assert f"<= {there}" in refusal(recipe_file, f"{name}={there + 1}")


def test_a_word_that_is_not_key_value_and_a_file_that_is_no_mapping_are_refused(tmp_path: Path):
    for word in ["rank", "=3", ""]:
        with case(word), pytest.raises(UserError, match="expected key=value"):
            parse_words([word])

    for content in ["- a list\n", "just text\n", "a: [1\n", "a: b: c\n", "\x00"]:
        with case(content):
            path = tmp_path / "broken.yaml"
            path.write_text(content)
            assert refusal(path).startswith(str(path))


def test_a_band_whose_ends_are_swapped_is_refused(recipe_file: Path):
    for name in ["steer.band", "heal.band"]:
        with case(name):
            assert name in refusal(recipe_file, f"{name}=[0.6,0.4]")


def test_fewer_completions_than_a_round_needs_or_as_many_of_the_same_are_refused(recipe_file: Path):
    message = refusal(recipe_file, "generation.prompts=2", "generation.alphas=[1]", "filter.min_train=3")
    assert "generation.prompts" in message
    assert "filter.min_train=3" in message
    load(recipe_file, "generation.prompts=3", "generation.alphas=[1]", "filter.min_train=3")

    assert "a greedy completion is the same" in refusal(recipe_file, "generation.keep=9", "generation.temperature=0")


def test_a_project_that_wandb_would_refuse_is_refused_before_anything_is_loaded(recipe_file: Path):
    for name in ["team/heal", "a:b", "50%", "x#1", "why?", "a\\b"]:
        with case(name):
            message = refusal(recipe_file, f"tracking.project={name}")
            assert message.startswith(f"tracking.project={name}: ")
            assert "tracking.entity" in message


def test_no_dose_a_dose_given_twice_and_a_tolerance_that_reaches_down_to_none_are_refused(recipe_file: Path):
    assert "generation.alphas" in refusal(recipe_file, "generation.alphas=[]")

    assert "evaluation.doses: 1 is there twice" in refusal(recipe_file, "evaluation.doses=[1,0.5,1.0]")
    assert load(recipe_file, "generation.alphas=[1,1]").generation.alphas == [1.0, 1.0]

    for words in [["calibration.target=0.05"], ["calibration.target=0.5", "calibration.tolerance=0.6"]]:
        with case(words):
            message = refusal(recipe_file, *words)
            assert message.startswith("calibration.target=")
            assert message.endswith("set calibration.tolerance smaller")
            load(recipe_file, *words, "calibration.tolerance=0.01")


def test_what_is_chosen_or_follows_by_itself_is_refused_beside_what_fixes_it(recipe_file: Path):
    for name in ("band", "method"):
        said = refusal(recipe_file, f"steer.{name}=auto", "data.vector=mine.gguf")
        assert said.startswith(f"steer.{name}=auto with data.vector=mine.gguf: a vector says itself where")

    for word in ("heal.barrier.power=-0.5", "heal.barrier.tau=0"):
        said = refusal(recipe_file, word, "heal.barrier.strength=auto")
        assert said.startswith(f"{word}: with heal.barrier.strength=auto")
        load(recipe_file, word, "heal.barrier.strength=0.3")


def test_a_missing_value_and_a_date_that_does_not_exist_are_no_value_and_every_refusal_is_one_line(
    recipe_file: Path, tmp_path: Path
):
    for name in ["run.name", "run.seed", "model.revision", "generation.alphas"]:
        with case(name):
            assert refusal(recipe_file, f"{name}=???").startswith(f"{name}=??? on the command line: ")

    for date in ["2024-13-45", "2024-02-30"]:
        with case(date):
            assert "expected int" in refusal(recipe_file, f"run.seed={date}")
            path = tmp_path / "dated.yaml"
            path.write_text(f"run: {{seed: {date}}}\n")
            assert refusal(path) == f"run.seed={date} in {path}: expected int, default 0"

    words = ("heal.rank=x", "heal.rnak=1", "run.rounds=0", "heal.use_dora=true", "heal.band=[1]")
    for word in (*words, "steer.method=a\nb", "model.dtype='a\n\nb'", "tracking.project=a\n#"):
        assert "\n" not in refusal(recipe_file, word)


def test_the_help_lists_every_key_with_type_default_and_meaning():
    text = help_text()
    for key in keys():
        assert f"  {key.name}={key.shown_default}  ({key.type_name})\n      {key.help}" in text
        for name, meaning in key.meanings.items():
            assert f"\n        {name}: {meaning.removeprefix(f'{name}: ')}" in text

    for key in keys():
        assert len(key.help) > 3, key.name


def test_a_choice_is_one_of_those_that_are_there_and_another_names_the_nearest(recipe_file: Path):
    for word, near in (
        ("steer.method=mean_dif", "mean_diff"),
        ("heal.barrier.divergence=kl_reverse", "kl_rev"),
        ("heal.barrier.aggregate=rms", "rmse"),
        ("heal.init=gausian", "gaussian"),
        ("tracking.to=[wandbb]", "wandb"),
        ("model.dtype=floatt32", "float32"),
    ):
        with case(word):
            (key,) = [key for key in keys() if key.name == word.partition("=")[0]]
            message = refusal(recipe_file, word)
            assert f"expected {key.type_name}, default {key.shown_default}; did you mean '{near}'?" in message
            for name in key.names:
                assert name in key.type_name


def test_one_text_is_a_list_of_one_and_a_list_may_be_empty(recipe_file: Path):
    for text, expected in (("wandb", ["wandb"]), ("[wandb]", ["wandb"]), ("[]", [])):
        with case(text):
            assert load(recipe_file, f"tracking.to={text}").tracking.to == expected


def test_neither_help_nor_a_recipe_loads_a_heavy_library():
    line = (
        "import sys; from heal.keys import *; from heal.recipe import *; help_text();"
        "load_recipe(['steer.method=pca', 'heal.init=gaussian']);"
        "print(*({'torch', 'transformers', 'peft', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_recipe_written_and_read_again_is_the_same(recipe_file: Path):
    recipe = load(
        recipe_file,
        "heal.barrier.strength=auto",
        "steer.band=auto",
        "steer.method=auto",
        "run.name=007",
        "run.seed=5",
        "heal.band=[0.25,1]",
        "heal.learning_rate=1e-5",
        "generation.alphas=[0.125,2]",
        "model.revision=1e5",
        "model.system=a: 'b' # c",
        "heal.barrier.divergence=none",
        "filter.max_tail_perplexity=1e9",
    )
    assert from_mapping(yaml.safe_load(to_yaml(recipe)), "recipe.yaml") == recipe
    written = to_mapping(recipe)
    assert recipe.heal.barrier.strength is recipe.steer.band is recipe.steer.method is None
    assert written["heal"]["barrier"]["strength"] == written["steer"]["band"] == written["steer"]["method"] == "auto"


def test_include_is_no_word_of_the_command_line(recipe_file: Path):
    assert "unknown key 'include'" in refusal(recipe_file, "include=common.yaml")


SHIPPED = [path for path in sorted(RECIPES.rglob("*.yaml")) if path.parent.name != "traits" and path.stem != "common"]


def test_every_recipe_that_comes_with_heal_loads():
    for path in SHIPPED:
        with case(path):
            check(load(path))


def test_a_foreign_key_in_a_resolved_recipe_is_refused_in_one_line_that_says_what_to_do():
    with pytest.raises(
        UserError, match=r"unknown key 'heal\.colour' in runs/x/recipe\.yaml: .*the version that"
    ) as caught:
        from_mapping({"heal": {"colour": 3}}, "runs/x/recipe.yaml")
    assert "\n" not in str(caught.value)


def test_a_recipe_of_an_earlier_version_has_what_it_lacks_at_its_default_or_at_what_was_done_before(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = load(recipe_file, "heal.rank=6", "heal.barrier.tau=0.2", "evaluation.skip=3", "filter.min_on_prompt=0.25")
    earlier = to_mapping(recipe)
    del earlier["tracking"], earlier["heal"]["barrier"]["tau"], earlier["evaluation"]["skip"]
    del earlier["filter"]["min_on_prompt"]
    back = from_mapping(earlier, "recipe.yaml")
    assert (back.heal.rank, back.heal.barrier.tau, back.evaluation.skip) == (6, 0.5, 0)
    assert back.tracking == Recipe().tracking
    assert (back.filter.min_on_prompt, Recipe().filter.min_on_prompt) == (0.0, 0.5)
    assert from_mapping(to_mapping(recipe), "recipe.yaml").filter.min_on_prompt == 0.25

    with_before = [replace(key, before=2) if key.name == "evaluation.skip" else key for key in keys()]
    monkeypatch.setattr(recipes, "keys_by_name", lambda: {key.name: key for key in with_before})
    assert from_mapping(earlier, "recipe.yaml").evaluation.skip == 2
    assert from_mapping(to_mapping(recipe), "recipe.yaml").evaluation.skip == 3
    assert Recipe().evaluation.skip == 0
