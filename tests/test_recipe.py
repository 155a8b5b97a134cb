"""The recipe: what is accepted, what is refused, and how the refusal helps."""

from pathlib import Path

import pytest
import yaml

import heal
from heal.config import Recipe
from heal.errors import UserError
from heal.recipe import RECIPES, check, find_yaml, from_mapping, help_text, keys, load_recipe, parse_words, to_yaml


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe without keys: everything is at its default."""
    path = tmp_path / "plain.yaml"
    path.write_text("# nothing\n")
    return path


def load(path: Path, *words: str) -> Recipe:
    return load_recipe([f"recipe={path}", *words])


def refusal(path: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, *words)
    return str(caught.value)


def test_the_defaults_are_a_valid_recipe(recipe_file: Path):
    check(Recipe())
    assert load(recipe_file) == Recipe(recipe=str(recipe_file))


def test_every_default_passes_its_own_key_s_checks(recipe_file: Path):
    for key in keys():
        if key.default not in (None, "") and key.name != "recipe":
            value = list(key.default) if isinstance(key.default, tuple) else key.default
            load(recipe_file, f"{key.name}={value}")


def test_the_file_overrides_the_defaults_and_the_command_line_overrides_the_file(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("heal:\n  rank: 4\n  barrier: {tau: 0.25}\nrun.rounds: 7\n")
    recipe = load(path, "heal.rank=6")
    assert (recipe.heal.rank, recipe.heal.barrier.tau, recipe.run.rounds) == (6, 0.25, 7)
    assert recipe.heal.alpha == Recipe().heal.alpha


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("heal.rnak=4", "heal.rank"),
        ("heal.barrier.taau=1", "heal.barrier.tau"),
        ("calibration.targett=1", "calibration.target"),
        ("triat=love", "trait"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(recipe_file: Path, word: str, near: str):
    assert f"did you mean '{near}'" in refusal(recipe_file, word)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path):
    path = tmp_path / "typo.yaml"
    path.write_text("heal:\n  rnak: 4\n")
    message = refusal(path)
    assert str(path) in message
    assert "did you mean 'heal.rank'" in message


def test_an_unknown_recipe_names_the_nearest_one(tmp_path: Path):
    for name in ("kl_rev_rmse", "nll"):
        (tmp_path / f"{name}.yaml").touch()
    with pytest.raises(UserError, match=r"recipe=kl_rev_rmze: no such recipe; did you mean 'kl_rev_rmse'"):
        find_yaml("recipe", "kl_rev_rmze", tmp_path)


def test_a_name_near_to_none_lists_all_that_there_are(tmp_path: Path):
    for name in ("kl_rev_rmse", "nll"):
        (tmp_path / f"{name}.yaml").touch()
    with pytest.raises(UserError, match=r"valid: kl_rev_rmse, nll"):
        find_yaml("recipe", "zzzzzz", tmp_path)


def test_a_recipe_path_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"recipe=nowhere/mine.yaml: no such file"):
        load_recipe(["recipe=nowhere/mine.yaml"])


@pytest.mark.parametrize(
    "word",
    [
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
        "model.system=${nothing.here}",
    ],
)
def test_a_value_of_a_wrong_type_is_refused_and_names_the_key(recipe_file: Path, word: str):
    message = refusal(recipe_file, word)
    assert message.startswith(word.partition("=")[0])
    assert "expected" in message


@pytest.mark.parametrize(
    "word",
    [
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
    ],
)
def test_a_value_out_of_range_is_refused_and_names_the_key(recipe_file: Path, word: str):
    message = refusal(recipe_file, word)
    assert message.startswith(word.partition("=")[0])
    assert "out of range, must be " in message


@pytest.mark.parametrize(
    ("name", "file"),
    [("steer.pairs", "contexts"), ("evaluation.questions", "questions"), ("evaluation.neutral_texts", "neutral")],
)
def test_no_more_can_be_asked_for_than_there_is(recipe_file: Path, name: str, file: str):
    there = len((Path(heal.__file__).parent / "data" / f"{file}.jsonl").read_text(encoding="utf-8").splitlines())
    load(recipe_file, f"{name}={there}")
    assert f"<= {there}" in refusal(recipe_file, f"{name}={there + 1}")


def test_the_ends_of_a_range_are_allowed(recipe_file: Path):
    recipe = load(recipe_file, "heal.band=[0,1]", "generation.top_p=1", "generation.temperature=0", "run.rounds=1")
    assert (recipe.heal.band, recipe.generation.top_p, recipe.run.rounds) == ((0.0, 1.0), 1.0, 1)


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "0.0003", "3.0e-4", "+3e-4"])
def test_scientific_notation_is_a_number(recipe_file: Path, tmp_path: Path, text: str):
    in_file = tmp_path / "rate.yaml"
    in_file.write_text(f"heal: {{learning_rate: {text}}}\n")
    assert load(recipe_file, f"heal.learning_rate={text}").heal.learning_rate == 3e-4
    assert load(in_file).heal.learning_rate == 3e-4


def test_scientific_notation_in_a_list_is_a_number(recipe_file: Path):
    assert load(recipe_file, "generation.alphas=[1e-1,.5]").generation.alphas == [0.1, 0.5]


def test_a_list_replaces_the_default_list(recipe_file: Path):
    assert load(recipe_file, "generation.alphas=[1]").generation.alphas == [1.0]


@pytest.mark.parametrize("text", ["001", "yes", "12:30", "2026-01-01", "1e5", "a=b", "[x", "a: b", "x # y", "0x10"])
def test_the_text_of_a_text_key_is_kept_as_it_was_typed(recipe_file: Path, text: str):
    assert load(recipe_file, f"run.name={text}").run.name == text


def test_quotes_around_a_text_are_taken_off_and_null_is_nothing(recipe_file: Path):
    recipe = load(recipe_file, "run.name='x y'", "model.revision=null")
    assert (recipe.run.name, recipe.model.revision) == ("x y", None)


@pytest.mark.parametrize("word", ["rank", "=3", ""])
def test_a_word_that_is_not_key_value_is_refused(word: str):
    with pytest.raises(UserError, match="expected key=value"):
        parse_words([word])


@pytest.mark.parametrize("content", ["- a list\n", "just text\n", "a: [1\n", "a: b: c\n", "\x00"])
def test_a_file_that_is_not_a_mapping_is_refused_and_named(tmp_path: Path, content: str):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    assert refusal(path).startswith(str(path))


def test_dora_is_refused_with_the_reason(recipe_file: Path):
    message = refusal(recipe_file, "heal.use_dora=true")
    assert "heal.use_dora" in message
    assert "folded" in message


def test_pissa_is_refused_with_the_reason(recipe_file: Path):
    message = refusal(recipe_file, "heal.init=pissa")
    assert "heal.init=pissa" in message
    assert "base" in message


@pytest.mark.parametrize("name", ["steer.band", "heal.band"])
def test_a_band_whose_ends_are_swapped_is_refused(recipe_file: Path, name: str):
    assert name in refusal(recipe_file, f"{name}=[0.6,0.4]")


def test_fewer_completions_than_the_round_needs_are_refused_before_it_starts(recipe_file: Path):
    message = refusal(recipe_file, "generation.prompts=2", "generation.alphas=[1]", "filter.min_train=3")
    assert "generation.prompts" in message
    assert "filter.min_train=3" in message
    load(recipe_file, "generation.prompts=3", "generation.alphas=[1]", "filter.min_train=3")


@pytest.mark.parametrize("name", ["team/heal", "a:b", "50%", "x#1", "why?", "a\\b"])
def test_a_project_that_wandb_would_refuse_is_refused_before_anything_is_loaded(recipe_file: Path, name: str):
    message = refusal(recipe_file, f"tracking.project={name}")
    assert message.startswith(f"tracking.project={name}: ")
    assert "tracking.entity" in message


def test_no_dose_at_all_is_refused(recipe_file: Path):
    assert "generation.alphas" in refusal(recipe_file, "generation.alphas=[]")


def test_a_dose_given_twice_is_refused_and_completions_may_be_drawn_twice_at_one(recipe_file: Path):
    assert "evaluation.doses: 1 is there twice" in refusal(recipe_file, "evaluation.doses=[1,0.5,1.0]")
    assert load(recipe_file, "generation.alphas=[1,1]").generation.alphas == [1.0, 1.0]


@pytest.mark.parametrize(
    "words", [["calibration.target=0.05"], ["calibration.target=0.5", "calibration.tolerance=0.6"]]
)
def test_a_tolerance_that_reaches_down_to_no_dose_at_all_is_refused(recipe_file: Path, words: list[str]):
    message = refusal(recipe_file, *words)
    assert message.startswith("calibration.target=")
    assert message.endswith("set calibration.tolerance smaller")
    load(recipe_file, *words, "calibration.tolerance=0.01")


@pytest.mark.parametrize("name", ["run.name", "run.seed", "model.revision", "generation.alphas"])
def test_what_stands_for_a_missing_value_is_no_value(recipe_file: Path, name: str):
    assert refusal(recipe_file, f"{name}=???").startswith(f"{name}=??? on the command line: ")


@pytest.mark.parametrize("date", ["2024-13-45", "2024-02-30"])
def test_a_date_that_does_not_exist_is_one_line(recipe_file: Path, tmp_path: Path, date: str):
    assert "not valid YAML" in refusal(recipe_file, f"run.seed={date}")
    path = tmp_path / "dated.yaml"
    path.write_text(f"run: {{seed: {date}}}\n")
    assert refusal(path).startswith(f"{path}: not valid YAML: ")


def test_every_refusal_is_one_line(recipe_file: Path):
    for word in ("heal.rank=x", "heal.rnak=1", "run.rounds=0", "heal.use_dora=true", "heal.band=[1]"):
        assert "\n" not in refusal(recipe_file, word)


def test_the_help_lists_every_key_with_type_default_and_meaning():
    text = help_text()
    for key in keys():
        default = "''" if key.default == "" else key.default
        assert f"  {key.name}={default}  ({key.type_name})\n      {key.help}" in text


def test_every_key_has_a_meaning():
    for key in keys():
        assert len(key.help) > 3, key.name


def test_a_recipe_written_and_read_again_is_the_same(recipe_file: Path):
    recipe = load(
        recipe_file,
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


def test_include_is_no_word_of_the_command_line(recipe_file: Path):
    assert "unknown key 'include'" in refusal(recipe_file, "include=common.yaml")


SHIPPED = [path for path in sorted(RECIPES.rglob("*.yaml")) if path.parent.name != "traits" and path.stem != "common"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_that_comes_with_heal_loads(path: Path):
    check(load(path))


def test_a_foreign_key_in_a_resolved_recipe_is_refused():
    with pytest.raises(UserError, match=r"unknown key 'heal\.colour' in runs/x/recipe\.yaml"):
        from_mapping({"heal": {"colour": 3}}, "runs/x/recipe.yaml")
