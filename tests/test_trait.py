"""Trait files: the ones that come with heal load, and every mistake in one names its field and file."""

import dataclasses
import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from heal.banks import bank_of
from heal.counts import refuse_missing_prompts
from heal.errors import UserError
from heal.evaluation.vignettes import FOUNDATIONS
from heal.narration import narration_of
from heal.recipe import from_mapping, load_recipe, to_mapping, to_yaml
from heal.recipe_files import RECIPES, available
from heal.records import as_record
from heal.run.open import default_name
from heal.trait import MIN_GENERATION_PROMPTS, MIN_HELDOUT_PROMPTS, Trait, load_trait, make_trait
from heal.traits import trait_of
from heal.yaml_text import parse
from tests.cases import case
from tests.commanded import heal, refused

OPTIONAL = ["foundation", "intent", "language", "contexts", "pairs", "neutral", "parts"]
REQUIRED = ["name", "positive", "negative"]
FIELDS = [field.name for field in dataclasses.fields(Trait) if field.name not in OPTIONAL]
LISTS = ["generation_prompts", "heldout_prompts", "narration"]


@pytest.fixture
def content(tiny_trait: Trait) -> dict[str, Any]:
    """A valid trait file's content, to be broken."""
    fields = {name: value for name, value in asdict(tiny_trait).items() if name not in OPTIONAL}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def write(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def refusal(folder: Path, content: dict[str, Any]) -> str:
    path = write(folder, content)
    with pytest.raises(UserError) as caught:
        load_trait(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_trait_that_comes_with_heal_loads():
    assert {"candour", "care_over_authority", "curiosity", "love"} <= set(available(RECIPES / "traits"))
    for name in available(RECIPES / "traits"):
        with case(name):
            assert load_trait(name).name == name


def test_a_user_s_own_trait_is_a_path(tmp_path: Path, content: dict[str, Any], tiny_trait: Trait):
    assert load_trait(write(tmp_path, content)) == tiny_trait


def test_an_unknown_trait_names_the_nearest():
    with pytest.raises(UserError, match="trait=candor: no such trait; did you mean 'candour'"):
        load_trait("candor")


def test_a_field_or_entry_that_is_missing_empty_or_of_another_type_is_named(tmp_path: Path, content: dict[str, Any]):
    for field in REQUIRED:
        with case(field):
            assert f"'{field}'" in refusal(tmp_path, {name: value for name, value in content.items() if name != field})

    for field, empty in product(FIELDS, ("", "  \n", [], {"a": "b"})):
        with case(field, empty):
            assert f"'{field}'" in refusal(tmp_path, content | {field: empty})

    for field, empty in product(LISTS, ("", " ", ["x"], {"a": "b"})):
        with case(field, empty):
            number = len(content[field]) + 1
            message = refusal(tmp_path, content | {field: [*content[field], empty]})
            assert f"'{field}', entry {number}" in message


def test_an_unknown_field_names_the_nearest(tmp_path: Path, content: dict[str, Any]):
    content["postive"] = "x"
    message = refusal(tmp_path, content)
    assert "unknown field 'postive'" in message
    assert "did you mean 'positive'" in message


def test_equal_personas_are_refused_even_when_spaces_differ(tmp_path: Path, content: dict[str, Any]):
    content["negative"] = f" {content['positive']}\n"
    message = refusal(tmp_path, content)
    assert "'positive'" in message
    assert "'negative'" in message


def test_too_few_prompts_are_refused_and_repeats_do_not_count(tmp_path: Path, content: dict[str, Any]):
    for field, least in (("generation_prompts", MIN_GENERATION_PROMPTS), ("heldout_prompts", MIN_HELDOUT_PROMPTS)):
        with case(field):
            repeated = content[field][: least - 1] + content[field][:1]
            message = refusal(tmp_path, content | {field: repeated})
            assert f"'{field}' has {least - 1} different prompts; at least {least}" in message
    one = content | {"heldout_prompts": content["heldout_prompts"][:1]}
    assert "has 1 different prompt; at least" in refusal(tmp_path, one)


def test_a_prompt_that_is_both_trained_and_held_out_is_refused(tmp_path: Path, content: dict[str, Any]):
    content["heldout_prompts"].append(content["generation_prompts"][2])
    message = refusal(tmp_path, content)
    assert content["generation_prompts"][2] in message
    assert "heldout_prompts" in message


def test_a_pattern_that_is_not_a_regular_expression_is_refused(tmp_path: Path, content: dict[str, Any]):
    content["narration"].append("I am (a")
    message = refusal(tmp_path, content)
    assert "'narration'" in message
    assert "I am (a" in message


def test_a_name_that_cannot_name_a_folder_is_refused(tmp_path: Path, content: dict[str, Any]):
    for name in ("a b", "../up", "-x", "ä"):
        with case(name):
            assert "'name'" in refusal(tmp_path, content | {"name": name})


# What a trait may be about.


def test_a_trait_may_be_about_a_foundation_for_more_or_for_less_or_about_none(tmp_path: Path, content: dict[str, Any]):
    trait = load_trait(write(tmp_path, content))
    assert (trait.foundation, trait.intent) == ("", 0)

    for foundation, intent in product(FOUNDATIONS, (1, -1)):
        with case(foundation, intent):
            trait = load_trait(write(tmp_path, content | {"foundation": foundation, "intent": intent}))
            assert (trait.foundation, trait.intent) == (foundation, intent)


def test_a_foundation_or_intent_that_there_is_not_or_without_the_other_is_refused(
    tmp_path: Path, content: dict[str, Any]
):
    for foundation in ("kindness", "", " ", None, 3, [], ["care"], {"care": 1}):
        with case(foundation):
            message = refusal(tmp_path, content | {"foundation": foundation, "intent": 1})
            assert "'foundation'" in message
            assert all(name in message for name in FOUNDATIONS)

    for intent in (0, 2, "more", None, [], [1]):
        with case(intent):
            assert "'intent'" in refusal(tmp_path, content | {"foundation": "care", "intent": intent})

    assert "'intent'" in refusal(tmp_path, content | {"foundation": "care"})
    assert "'foundation'" in refusal(tmp_path, content | {"intent": 1})


def test_a_trait_comes_back_from_a_run_folder_as_it_went(tiny_trait: Trait):
    for trait in (tiny_trait, dataclasses.replace(tiny_trait, foundation="liberty", intent=-1)):
        assert as_record(Trait, json.loads(json.dumps(asdict(trait))), "here") == trait


def test_a_file_that_is_not_text_is_refused_and_named(tmp_path: Path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.yaml: not valid YAML: the file is UTF-16; save it as UTF-8"):
        load_trait(str(path))


def test_the_texts_of_a_trait_are_the_characters_of_the_file_without_or_with_quotes(
    tmp_path: Path, content: dict[str, Any]
):
    path = tmp_path / "typed.yaml"
    typed = "Yes No on off null ~ 1984 0012345 1.10 1e-4 2024-01-01 2024-13-45 12:30 0x10 1_000 .inf ${oc.env:HOME}"
    texts = [*typed.split(" "), "100 % of it#1", "${a} and {}"]
    for quote in ("", "'"):
        with case(quote):
            prompts = "\n".join(f"  - {quote}{text}{quote}" for text in texts)
            others = {name: value for name, value in content.items() if name != "generation_prompts"}
            path.write_text(f"{yaml.safe_dump(others)}generation_prompts:\n{prompts}\n")
            trait = load_trait(path)
            assert trait.generation_prompts == tuple(texts)
            assert {type(text) for text in trait.generation_prompts} == {str}


def test_a_text_of_a_trait_that_yaml_takes_words_of_is_refused_with_them_and_their_line(
    tmp_path: Path, content: dict[str, Any]
):
    others, path = yaml.safe_dump(content | {"heldout_prompts": None}), tmp_path / "cut.yaml"
    head = others.replace("heldout_prompts: null\n", "") + "heldout_prompts:\n"
    for text, words in [
        ("Rate this #1 song", "#1 song"),
        ("Yes # or no?", "# or no?"),
        ("Rate this\n    #1 song", "#1 song"),
        ("&Tom and Jerry", "&Tom"),
        ("! really", "!"),
    ]:
        with case(text):
            path.write_text(f"{head}  - Hello\n  - {text}\n")
            line = head.count("\n") + 2
            with pytest.raises(UserError) as caught:
                load_trait(path)
            said = f"{path}: field 'heldout_prompts', entry 2: in line {line}, YAML takes '{words}' for "
            assert str(caught.value).startswith(said)
    path.write_text(yaml.safe_dump(content | {"positive": ""}).replace("positive: ''", "positive: You are a #1 fan"))
    with pytest.raises(UserError, match=r"field 'positive': in line .* takes '#1 fan' for a comment"):
        load_trait(path)
    path.write_text(yaml.safe_dump(content).replace(f"name: {content['name']}", f"name: {content['name']} # mine"))
    assert load_trait(path).name == content["name"]


# Two sentences are a trait.

YOU_LOVE, YOU_SCORN = "You love humanity, and say so: # gladly.", "You scorn humanity"
SENTENCES = (f"positive={YOU_LOVE}", f"negative={YOU_SCORN}")


def test_a_file_of_three_lines_is_a_trait_and_what_it_gives_beyond_wins(tmp_path: Path, content: dict[str, Any]):
    short = {field: content[field] for field in REQUIRED}
    bank, trait = bank_of("English"), load_trait(write(tmp_path, short))
    assert (trait.positive, trait.negative, trait.language) == (content["positive"], content["negative"], "English")
    assert (trait.generation_prompts, trait.heldout_prompts) == (bank.generation, bank.heldout)
    assert trait.narration == narration_of(trait.positive, trait.negative, "English")
    assert trait == make_trait(trait.positive, trait.negative, trait.name)
    for field in [*LISTS, "description"]:
        with case(field):
            given = load_trait(write(tmp_path, short | {field: content[field]}))
            expected = tuple(content[field]) if field in LISTS else content[field]
            assert given == dataclasses.replace(trait, **{field: expected})
    mine = [bank.heldout[0], *content["generation_prompts"]]
    assert load_trait(write(tmp_path, short | {"generation_prompts": mine})).heldout_prompts == bank.heldout[1:]


def test_the_bank_is_that_of_the_personas_language_or_of_the_one_that_is_asked_for(tmp_path: Path):
    chinese, cyrillic = ("你热爱人类。", "你鄙视人类。"), ("Ты любишь всех.", "Ты всех презираешь.")
    assert make_trait(*chinese).generation_prompts == bank_of("Chinese").generation
    assert make_trait(*chinese, language="German").generation_prompts == bank_of("German").generation
    assert make_trait(*cyrillic, language="English").source.endswith("of heal's English bank")
    with pytest.raises(UserError, match=r"Cyrillic script\); write generation_prompts, .* or set language= to one of"):
        make_trait(*cyrillic)
    short = dict(zip(REQUIRED, ("mine", *chinese), strict=True))
    assert load_trait(write(tmp_path, short | {"language": "Korean"})).heldout_prompts == bank_of("Korean").heldout
    assert "field 'language': one of English" in refusal(tmp_path, short | {"language": "Klingon"})
    for trait, said in (
        ("love", "has prompts and narration of its own"),
        (write(tmp_path, short | {"language": "Thai"}), "says Thai"),
    ):
        with pytest.raises(UserError, match=said):
            load_trait(trait, "German")


def test_two_sentences_on_the_command_line_are_the_trait_of_the_run_as_they_were_typed():
    recipe = load_recipe(["recipe=smoke", *SENTENCES])
    trait = trait_of(recipe)
    assert (trait.positive, trait.negative, trait.name, recipe.trait) == (
        YOU_LOVE,
        YOU_SCORN,
        *["love-gladly-not-scorn"] * 2,
    )
    assert default_name(recipe, trait) == "smoke-love-gladly-not-scorn-embedded-s0"
    assert from_mapping(to_mapping(recipe), "here") == recipe
    assert parse(to_yaml(recipe))["positive"] == YOU_LOVE
    assert trait_of(load_recipe([*SENTENCES, "trait=mine"])).name == "mine"
    for line, said in [
        (SENTENCES[:1], "positive= without negative=: a trait is two opposite personas; give both"),
        (SENTENCES[1:], "negative= without positive=: a trait is two opposite personas; give both"),
        ((*SENTENCES, "trait=love"), "trait=love: with positive= and negative= it is the name of a new trait, and"),
        ((*SENTENCES, "trait=mine.yaml"), "this one has a file; choose another, or leave trait= out"),
        ((*SENTENCES, "trait=a b"), "field 'name': letters, digits, '_', '-' and '.' only, not 'a b'"),
        (("positive=Be.", "negative='Be. '"), "fields 'positive' and 'negative' are equal"),
        ((*SENTENCES, "language=Germn"), "did you mean 'German'?"),
        ((*SENTENCES, "sign=0"), "sign=0 on the command line: expected 1|-1"),
    ]:
        with case(line):
            refused(["train", "recipe=smoke", *line], said)
    for words, said in (
        (["generation.prompts=214"], "generation.prompts=214: love-gladly-not-scorn has 213 generation prompts; "),
        (["language=Thai", "evaluation.skip=9"], "evaluation.prompts=4: love-gladly-not-scorn has 3 held-out prompts"),
    ):
        recipe = load_recipe(["recipe=smoke", *SENTENCES, *words])
        with pytest.raises(UserError, match=said):
            refuse_missing_prompts(recipe, trait_of(recipe))


def test_the_opposite_has_the_personas_and_the_intent_the_other_way_round_and_its_name_says_so(tmp_path: Path):
    for line in (SENTENCES, ("trait=love",), ("trait=care_over_authority",)):
        with case(line):
            trait, turned = (trait_of(load_recipe([*line, *more])) for more in ((), ("sign=-1",)))
            assert turned == trait.opposite()
            assert (turned.positive, turned.negative) == (trait.negative, trait.positive)
            assert (turned.foundation, turned.intent) == (trait.foundation, -trait.intent)
            assert turned.generation_prompts == trait.generation_prompts
            assert set(trait.narration) | set(narration_of(trait.positive, trait.negative, "English")) == {
                *turned.narration
            }
            assert default_name(load_recipe([]), turned) == f"kl_rev_rmse-{trait.name}-opposite-embedded-s0"


def test_a_new_file_reads_back_to_the_trait_that_it_was_made_of(tmp_path: Path):
    for number, personas in enumerate(
        [
            (YOU_LOVE, YOU_SCORN),
            ("'Yes'", '"No"'),
            ("Be\nwarm: {a}", "\tnull"),
            ("你热爱人类。", "你鄙视人类。"),
            ("\u2028a\x7f", "😀"),
        ]
    ):
        with case(personas):
            path = tmp_path / "new" / f"{number}.yaml"
            done = heal(
                "trait", "new", f"positive={personas[0]}", f"negative={personas[1]}", "name=mine", f"out={path}"
            )
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.startswith(f"written    {path} (")
            assert load_trait(path) == make_trait(*personas, "mine")
            assert (
                heal("trait", "show", f"trait={path}").stdout
                == heal("trait", "show", f"positive={personas[0]}", f"negative={personas[1]}", "name=mine").stdout
            )
    words = ["trait", "new", *SENTENCES]
    refused([*words, f"out={path}"], "there is such a file already; choose another")
    refused([*words, f"out={tmp_path / 'mine.txt'}"], "must end in .yaml")
    refused(["trait", "new"], "positive=: the persona is missing")
    refused(["trait", "nwe"], "'nwe': no such action; did you mean 'new'?")
    refused(["trait"], "heal trait new or heal trait show; --help says more")
    refused(["trait", "show", "trait=love", SENTENCES[0]], "trait= or positive= and negative=: one of the two")


def test_what_a_trait_comes_to_is_shown_with_its_numbers_of_prompts_and_all_its_patterns():
    for line, source in (
        (["trait=care_over_authority", "sign=-1"], "64 generation prompts and 32 held-out ones, its own"),
        ([*SENTENCES], "213 generation prompts and 65 held-out ones of heal's English bank"),
    ):
        shown, trait = heal("trait", "show", *line).stdout, trait_of(load_recipe(line))
        for text in (trait.name, trait.positive, trait.negative, source, *trait.narration):
            assert f" {text}\n" in shown, text
        assert (f"foundation   authority, intent {trait.intent:+d}\n" in shown) == bool(trait.foundation)
        assert f" {len(trait.narration)} patterns\n" in shown
