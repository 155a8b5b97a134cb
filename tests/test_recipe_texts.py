"""How what is typed is read: texts as their characters, numbers by the type of their key, files in one encoding."""

import random
from pathlib import Path

import pytest

from heal.recipe import (
    flatten,
    from_mapping,
    to_mapping,
    to_yaml,
)
from tests.asked import load, read, refusal
from tests.cases import case

TEXTS = (  # what YAML or an interpolation would make something else of
    *("001", "0012345", "yes", "No", "on", "off", "1984", "1.10", "1e5", "1e-4", "12:30", "2026-01-01", "2024-13-45"),
    *("0x10", "1_000", ".nan", "<<", "${nothing.here}", "${oc.env:HOME}", "$HOME", "$${x}", "x{}y", "100%", "a#1"),
    *("True", "None"),
)


def test_scientific_notation_is_a_number(recipe_file: Path, tmp_path: Path):
    for text in ["3e-4", "3E-4", "0.0003", "3.0e-4", "+3e-4"]:
        with case(text):
            in_file = tmp_path / "rate.yaml"
            in_file.write_text(f"heal: {{learning_rate: {text}}}\n")
            assert load(recipe_file, f"heal.learning_rate={text}").heal.learning_rate == 3e-4
            assert load(in_file).heal.learning_rate == 3e-4


def test_scientific_notation_in_a_list_is_a_number(recipe_file: Path):
    assert load(recipe_file, "generation.alphas=[1e-1,.5]").generation.alphas == [0.1, 0.5]


def test_a_list_replaces_the_default_list(recipe_file: Path):
    assert load(recipe_file, "generation.alphas=[1]").generation.alphas == [1.0]


def test_a_text_is_what_was_typed_in_memory_and_in_a_run_s_recipe(recipe_file: Path):
    letters = ["${", "}", "{", "$", "\\", "\\${", "?", "???", "#", " #", ": ", "- ", "%", "'", '"', "\n", "\t", "é"]
    letters += [
        "\x00",
        "\x85",
        "\u2028",
        "\ufeff",
        "\U0001f600",
        "~",
        "&",
        "*",
        "!",
        "|",
        ">",
        "1",
        "null",
        "oc.env:HOME",
    ]
    draw = random.Random(0)
    composed = ["".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(36)]
    typed = [
        *TEXTS,
        "null",
        "~",
        "a=b",
        "[x",
        "a: b",
        "x # y",
        "'a' or 'b'",
        '"a" is it',
        "'tis",
        "@x",
        "\t",
        " x ",
        "",
    ]
    texts = [*typed, *(text for text in composed if text not in ("???", "''", '""') and not text[0] == text[-1] == "'")]
    names = ("model.system", "run.name", "run.root", "model.name", "trait", "evaluation.vignettes")
    for first in range(0, len(texts), len(names)):
        given = dict(zip(names, texts[first : first + len(names)], strict=False))
        with case(given):
            recipe = load(recipe_file, *(f"{name}={text}" for name, text in given.items()))
            assert {name: flatten(to_mapping(recipe), "here")[name] for name in given} == given
            assert from_mapping(read(to_yaml(recipe), recipe_file.parent), "recipe.yaml") == recipe
            for name, text in given.items():
                section, _, last = name.rpartition(".")
                assert getattr(getattr(recipe, section) if section else recipe, last) == text


def test_the_text_of_a_text_key_in_a_file_is_its_characters(tmp_path: Path):
    path = tmp_path / "typed.yaml"
    for text, quote in [(text, quote) for text in TEXTS for quote in ("", "'", '"')] + [("null", "'"), ("~", '"')]:
        with case(text, quote):
            path.write_text(f"model.system: {quote}{text}{quote}\ntracking.entity: {quote}{text}{quote}\n")
            recipe = load(path)
            assert (recipe.model.system, recipe.tracking.entity) == (text, text)
    path.write_text("run.name: null\ntracking: {entity: null}\nmodel:\n  revision:\n")
    recipe = load(path)
    assert (recipe.run.name, recipe.tracking.entity, recipe.model.revision) == ("null", None, None)
    path.write_text("model:\n  system:\n")
    assert refusal(path).startswith(f"model.system= in {path}: expected str, default ")


def test_a_text_of_several_words_that_yaml_takes_some_of_is_refused_with_them_and_their_line(tmp_path: Path):
    path = tmp_path / "cut.yaml"
    for line, words, sign in [
        ("system: You are the #1 fan", "#1 fan", "a comment"),
        ("system: You are it # or not", "# or not", "a comment"),
        ("system: You #1", "#1", "a comment"),
        ("system: You are\n    #1", "#1", "a comment"),
        ("system: &Tom and Jerry", "&Tom", "an anchor or a tag"),
        ("system: ! you are it", "!", "an anchor or a tag"),
    ]:
        with case(line):
            path.write_text(f"# here\nmodel:\n  {line}\n")
            message = refusal(path)
            assert message.startswith("model.system=")
            assert f"in line 3, YAML takes '{words}' for {sign} and not for a part of the text; put" in message
            assert "\n" not in message
    for line, text in [
        ("system: 'the #1 fan' # to it", "the #1 fan"),
        ("system: embedded  # a word", "embedded"),
        ("system: &a embedded #", "embedded"),
        ("system: !!str you are it", "you are it"),
        ("system: a#1", "a#1"),
        ("system: You are it\n    # note", "You are it"),
        ("system: You are it\n  #note", "You are it"),
    ]:
        with case(line):
            path.write_text(f"model:\n  {line}\n")
            assert load(path).model.system == text


def test_nothing_of_the_environment_gets_into_a_recipe(recipe_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    text = "Use ${oc.env:SECRET_TOKEN} and $SECRET_TOKEN and ${run.seed}"
    in_file = recipe_file.with_name("secret.yaml")
    in_file.write_text(f"model.system: {text}\n")
    for recipe in (load(recipe_file, f"model.system={text}"), load(in_file)):
        assert recipe.model.system == text
        assert "hunter2" not in to_yaml(recipe) + str(to_mapping(recipe))


def test_a_number_is_read_by_the_type_of_its_key_and_a_truth_value_by_its_own(recipe_file: Path, tmp_path: Path):
    path = tmp_path / "typed.yaml"
    truths = [(word, True) for word in ("true", "yes", "On", "1")] + [(word, False) for word in ("False", "no", "off")]
    numbers = [("run.seed", "0012345", 12345), ("run.seed", "010", 10), ("heal.learning_rate", "1e-4", 1e-4)]
    floats = [("heal.weight_decay", "1.10", 1.1), ("calibration.target", "2", 2.0), ("heal.clip", "'3'", 3.0)]
    for name, text, value in [*numbers, *floats, *(("heal.compile", word, truth) for word, truth in truths)]:
        with case(name, text):
            path.write_text(f"{name}: {text}\n")
            for recipe in (load(recipe_file, f"{name}={text}"), load(path)):
                read = flatten(to_mapping(recipe), "here")[name]
                assert (read, type(read)) == (value, type(value))


def test_a_key_that_is_twice_in_a_file_is_refused_with_both_lines(tmp_path: Path):
    path = tmp_path / "twice.yaml"
    for content, key, lines in [
        ("heal:\n  rank: 8\nrun: {seed: 1}\nheal:\n  epochs: 5\n", "heal", "1 and 4"),
        ("heal:\n  rank: 8\n  alpha: 2\n  rank: 8\n", "heal.rank", "2 and 4"),
        ("heal.rank: 8\nheal:\n  rank: 4\n", "heal.rank", "1 and 3"),
        ("heal: {rank: 8}\nheal.rank: 4\n", "heal.rank", "1 and 2"),
        ("heal: {barrier: {tau: 1,\n tau: 1}}\n", "heal.barrier.tau", "1 and 2"),
        ("heal: 1\n'heal': {rank: 4}\n", "heal", "1 and 2"),
    ]:
        with case(content):
            path.write_text(content)
            assert refusal(path) == f"{path}: not valid YAML: '{key}' is there twice, in lines {lines}; keep one"
    path.write_text("heal: {rank: 8}\nheal.alpha: 4\nheal.barrier: {tau: 1}\nheal.barrier.operator_norm: 1\n")
    heal = load(path).heal
    assert (heal.rank, heal.alpha, heal.barrier.tau, heal.barrier.operator_norm) == (8, 4, 1.0, 1.0)


def test_a_file_is_utf_8_with_or_without_a_mark_and_any_ends_of_lines(tmp_path: Path):
    path, text = tmp_path / "encoded.yaml", "heal:\n  rank: 8\nmodel.system: |-\n  é\n  ü\n"
    for content in (text, text.replace("\n", "\r\n"), text.replace("\n", "\r")):
        for encoding in ("utf-8", "utf-8-sig"):
            with case(content, encoding):
                path.write_bytes(content.encode(encoding))
                assert (load(path).heal.rank, load(path).model.system) == (8, "é\nü")


def test_what_makes_a_file_unreadable_is_named_in_one_line(tmp_path: Path):
    path = tmp_path / "unreadable.yaml"
    for content, said in [
        *(
            ("heal: {rank: 8}".encode(name), "the file is UTF-16; save it")
            for name in ("utf-16", "utf-16-le", "utf-16-be")
        ),
        ("heal: {rank: 8}".encode("utf-32"), "the file is UTF-32; save it"),
        ("heal:\n  rank: 8 # é\n".encode("latin-1"), "line 2 is not UTF-8 (byte 0xe9); save it"),
        (b"heal:\n\trank: 8\n", "line 2 is indented with a tab; YAML takes spaces only"),
        (b"heal:\n  rank: 8\n\talpha: 8\n", "line 3 is indented with a tab; YAML takes spaces only"),
        (b"heal: &a\n  rank: *a\n", "'heal.rank' contains itself"),
        (b"model.system: %d items\n", "needs quotes"),
        (b"model.system: Say: yes\n", "needs quotes"),
        (
            b"run.seed: !!int 3\n",
            "line 1, column 11: the tag !!int: its key says the type of a value; leave the tag out",
        ),
        (b"run:\tseed\n", "line 1, column 5: a tab; YAML takes spaces only"),
        (b"run.seed: 1\nrun.name: \x07\n", "line 2: the control character U+0007; take it out"),
        (b"run.seed: 1\n---\nrun.seed: 2\n", "line 2, column 1: expected a single document in the stream, but found"),
        (b'model.system: "\\ud83d\\ude00"\n', "line 1, column 15: \\ud83d is half of a character; write the"),
    ]:
        with case(content):
            path.write_bytes(content)
            message = refusal(path)
            assert message.startswith(f"{path}: not valid YAML: ")
            assert said in message
            assert "\n" not in message


def test_quotes_around_a_text_are_taken_off_and_null_is_nothing(recipe_file: Path):
    recipe = load(recipe_file, "run.name='x y'", "model.revision=null")
    assert (recipe.run.name, recipe.model.revision) == ("x y", None)
