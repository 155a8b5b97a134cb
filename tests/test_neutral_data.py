"""The held-out neutral texts and the foreign ones: complete, of the promised length, and seen nowhere else."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import heal
from heal.generation.filters import REFUSALS, matches, repetition
from heal.recipe import RECIPES
from heal.studies.planted_damage.damage import LANGUAGES
from heal.trait import load_trait

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


NEUTRAL, NEUTRAL_APART = read(DATA / "neutral.jsonl"), read(DATA / "neutral_apart.jsonl")
EVERY = NEUTRAL + NEUTRAL_APART
FOREIGN = read(LANGUAGES)
TRAITS = [load_trait(path.stem) for path in sorted((RECIPES / "traits").glob("*.yaml"))]


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[\w']+", text.lower()))


def seen_elsewhere() -> list[str]:
    traits = [prompt for trait in TRAITS for prompt in (*trait.generation_prompts, *trait.heldout_prompts)]
    others = [("contexts", "text")]
    for apart in ("", "_apart"):
        others += [(f"questions{apart}", "question"), (f"vignettes{apart}", "text")]
    return traits + [line[field] for name, field in others for line in read(DATA / f"{name}.jsonl")]


def test_there_are_24_neutral_prompts_and_8_apart_all_different_each_with_a_text_of_its_own():
    assert (len(NEUTRAL), len(NEUTRAL_APART)) == (24, 8)
    assert all(list(line) == ["prompt", "text"] for line in EVERY)
    assert len({line["prompt"].lower() for line in EVERY}) == 32
    assert len({line["text"].lower() for line in EVERY}) == 32
    prompts = [words(line["prompt"]) for line in EVERY]
    assert not [pair for pair in combinations(prompts, 2) if len(pair[0] & pair[1]) > 0.5 * len(pair[0] | pair[1])]


def test_a_neutral_text_has_45_to_60_words_in_whole_plain_sentences_of_nobody_in_particular():
    for line in EVERY:
        text = line["text"]
        assert 45 <= len(text.split()) <= 60, text
        assert text[-1] == ".", text
        assert text[0].isupper(), text
        assert re.search(r"[\n`#|_]|\*\*|  ", text) is None, text
        assert line["prompt"][-1] in ".?", line["prompt"]
        assert (line["prompt"] + text).isascii(), text
        assert re.findall(r"\b(?:I|me|my|mine|we|us|our)\b", text, re.IGNORECASE) == [], text


def test_a_neutral_text_neither_loops_nor_refuses_nor_touches_or_verbalises_a_trait():
    for line in EVERY:
        assert repetition(line["text"]) < 0.2, line
        assert not matches(line["text"], REFUSALS), line
        assert THEMES.findall(line["prompt"] + " " + line["text"]) == [], line
        for trait in TRAITS:
            assert not matches(line["text"], trait.narration), (trait.name, line)


def test_a_neutral_prompt_is_like_no_prompt_of_a_trait_a_context_or_a_question():
    elsewhere = [words(text) for text in seen_elsewhere()]
    for line in EVERY:
        asked = words(line["prompt"])
        assert not any(len(asked & seen) > 0.5 * len(asked | seen) for seen in elsewhere), line["prompt"]


def test_there_are_4_different_texts_in_each_of_4_languages():
    assert all(list(line) == ["language", "text"] for line in FOREIGN)
    assert Counter(line["language"] for line in FOREIGN) == {"de": 4, "fr": 4, "es": 4, "it": 4}
    assert len({line["text"].lower() for line in FOREIGN}) == 16


def test_a_foreign_text_has_35_to_50_words_in_whole_sentences_of_its_language_and_no_other():
    for line in FOREIGN:
        text = line["text"]
        assert 35 <= len(text.split()) <= 50, text
        assert text[-1] == ".", text
        assert text[0].isupper(), text
        assert re.search(r"[\n�`#*]|Ã|Â|  ", text) is None, text
        said = re.findall(r"\w+", text.lower())
        counts = {language: sum(word in common for word in said) for language, common in COMMON.items()}
        own = counts.pop(line["language"])
        assert own >= 3, text
        assert all(own >= 2 * other for other in counts.values()), text
        assert not {"the", "of", "is", "with", "it"} & set(said), text
