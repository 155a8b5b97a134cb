"""The held-out neutral texts and the foreign ones: complete, of the promised length, and seen nowhere else."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

import heal
from heal.generation.filters import REFUSALS, matches, repetition
from heal.recipe import RECIPES
from heal.studies.planted_damage.damage import LANGUAGES
from heal.trait import Trait, load_trait

DATA = Path(heal.__file__).parent / "data"

# Frequent words that none of the other languages here has.
COMMON = {
    "de": {"der", "und", "das", "nicht", "mit", "ist", "im", "sie", "auf", "man", "am"},
    "fr": {"et", "les", "avec", "dans", "est", "du", "une", "puis", "au", "plus", "pas"},
    "es": {"el", "y", "los", "las", "por", "se", "del", "más", "al", "hasta", "que"},
    "it": {"il", "e", "di", "gli", "che", "della", "è", "si", "per", "dal"},
}

# Beginnings of words of the traits' themes, of feelings and of morals; \b ends those that begin harmless words too.
THEMES = re.compile(
    r"""
    \b(?:
    affection | authorit | blunt | boss\b | candid | candou?r | car(?:e|es|ing)\b | command | compassion | conscien
    | cruel | curio | disobe | duty | empath | evil | fascinat | feel | fond | frank | gentle | good\b | harm | help
    | honest | human | intrigu | justice | kind | lie[sd]?\b | lov | moral | myster | obey | order | police | rul
    | sorry | suffer | tender\b | truth | virtu | warmth | wonder | wrong
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").splitlines()]


NEUTRAL = read(DATA / "neutral.jsonl")
FOREIGN = read(LANGUAGES)
TRAITS = [load_trait(path.stem) for path in sorted((RECIPES / "traits").glob("*.yaml"))]


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[\w']+", text.lower()))


def seen_elsewhere() -> list[str]:
    traits = [prompt for trait in TRAITS for prompt in (*trait.generation_prompts, *trait.heldout_prompts)]
    others = [("contexts", "text"), ("questions", "question"), ("vignettes", "text")]
    return traits + [line[field] for name, field in others for line in read(DATA / f"{name}.jsonl")]


def test_there_are_24_different_neutral_prompts_each_with_a_text_of_its_own():
    assert all(list(line) == ["prompt", "text"] for line in NEUTRAL)
    assert len({line["prompt"].lower() for line in NEUTRAL}) == 24
    assert len({line["text"].lower() for line in NEUTRAL}) == 24
    assert len(NEUTRAL) == 24


@pytest.mark.parametrize("line", NEUTRAL, ids=lambda line: line["prompt"])
def test_a_neutral_text_has_45_to_60_words_in_whole_plain_sentences(line: dict[str, str]):
    assert 45 <= len(line["text"].split()) <= 60
    assert line["text"][-1] == "."
    assert line["text"][0].isupper()
    assert re.search(r"[\n`#|_]|\*\*|  ", line["text"]) is None
    assert line["prompt"][-1] in ".?"
    assert (line["prompt"] + line["text"]).isascii()


@pytest.mark.parametrize("line", NEUTRAL, ids=lambda line: line["prompt"])
def test_a_neutral_text_neither_loops_nor_refuses(line: dict[str, str]):
    assert repetition(line["text"]) < 0.2
    assert not matches(line["text"], REFUSALS)


@pytest.mark.parametrize("line", NEUTRAL, ids=lambda line: line["prompt"])
def test_a_neutral_text_touches_no_theme_of_a_trait(line: dict[str, str]):
    assert THEMES.findall(line["prompt"] + " " + line["text"]) == []


@pytest.mark.parametrize("line", NEUTRAL, ids=lambda line: line["prompt"])
def test_a_neutral_text_speaks_of_nobody_in_the_first_person(line: dict[str, str]):
    assert re.findall(r"\b(?:I|me|my|mine|we|us|our)\b", line["text"], re.IGNORECASE) == []


@pytest.mark.parametrize("trait", TRAITS, ids=lambda trait: trait.name)
def test_no_neutral_text_verbalises_a_trait(trait: Trait):
    assert [line["prompt"] for line in NEUTRAL if matches(line["text"], trait.narration)] == []


@pytest.mark.parametrize("line", NEUTRAL, ids=lambda line: line["prompt"])
def test_a_neutral_prompt_is_like_no_prompt_of_a_trait_a_context_or_a_question(line: dict[str, str]):
    asked = words(line["prompt"])
    like = [text for text in seen_elsewhere() if len(asked & words(text)) > 0.5 * len(asked | words(text))]
    assert like == []


def test_there_are_4_different_texts_in_each_of_4_languages():
    assert all(list(line) == ["language", "text"] for line in FOREIGN)
    assert Counter(line["language"] for line in FOREIGN) == {"de": 4, "fr": 4, "es": 4, "it": 4}
    assert len({line["text"].lower() for line in FOREIGN}) == 16


@pytest.mark.parametrize("line", FOREIGN, ids=lambda line: f"{line['language']}: {line['text'][:24]}")
def test_a_foreign_text_has_35_to_50_words_in_whole_sentences(line: dict[str, str]):
    assert 35 <= len(line["text"].split()) <= 50
    assert line["text"][-1] == "."
    assert line["text"][0].isupper()
    assert re.search(r"[\n�`#*]|Ã|Â|  ", line["text"]) is None


@pytest.mark.parametrize("line", FOREIGN, ids=lambda line: f"{line['language']}: {line['text'][:24]}")
def test_a_foreign_text_is_in_its_language_and_no_other(line: dict[str, str]):
    said = re.findall(r"\w+", line["text"].lower())
    found = {language: sum(word in common for word in said) for language, common in COMMON.items()}
    assert found[line["language"]] >= 3
    assert all(found[line["language"]] >= 2 * found[other] for other in COMMON if other != line["language"])
    assert not {"the", "of", "is", "with", "it"} & set(said)
