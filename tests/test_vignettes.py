"""The vignettes keep their promises: balanced, short, seen from two sides, and no word names the answer."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import mean

import pytest

import heal

FOUNDATIONS = ["care", "fairness", "loyalty", "authority", "sanctity", "liberty", "social_norms"]
EACH = 20
SIDES = ["text", "self_text"]
FEMALE = {"woman", "girl", "grandmother", "mother"}
MALE = {"man", "boy", "grandfather", "father"}

# Beginnings of words that name a foundation or pass judgement; \b ends those that begin harmless words too.
GIVEAWAY = re.compile(
    r"""
    abus | authorit | bad\b | betray | blasphem | bull(y|ies)\b | caring\b | cheat | coerc | cruel | customs?\b | deceit
    | decen | defile | def(y|ies|ying)\b | desecrat | desert(s|ing)\b | dishonest | disloyal | disobe | disgust
    | disrespect | dominat | eccentric | equal | etiquette | evil | fair(ly|ness)?\b | filth | forbid | forc(e|es|ing)\b
    | freedom | gross\b | guilt | harm | holy | honest | immoral | impolite | improper | impure | insolen | insubordinat
    | justice | kind\b | liberty | loyal | mean\b | moral | nast | norm | obedien | obey | odd(ly)?\b | oppress | outrag
    | peculiar | perver | polite | profan | pure\b | rebel | respect | revolting | rude | sacred | sacrileg | shame
    | sin\b | steal | stolen | strange(ly)?\b | tradition | traitor | treacher | tyran | unconventional | unfair
    | unjust | unkind | unnatural | unusual | vicious | vile | violat | weird | wicked | wrong
    """,
    re.VERBOSE,
)


def read() -> list[dict[str, str]]:
    path = Path(heal.__file__).parent / "data" / "vignettes.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


VIGNETTES = read()


def of(foundation: str) -> list[dict[str, str]]:
    return [vignette for vignette in VIGNETTES if vignette["foundation"] == foundation]


def words(sentence: str) -> list[str]:
    return re.findall(r"[a-z']+", sentence.lower())


def actor(vignette: dict[str, str]) -> str:
    seen = re.match(r"You see an? (\w+) \w+ing\b", vignette["text"])
    assert seen, vignette["text"]
    return seen[1]


def jaccard(one: set, other: set) -> float:
    return len(one & other) / len(one | other)


def trigrams(sentence: str) -> set[tuple[str, ...]]:
    found = words(sentence)
    return set(zip(found, found[1:], found[2:], strict=False))


def test_each_foundation_has_twenty():
    assert Counter(vignette["foundation"] for vignette in VIGNETTES) == dict.fromkeys(FOUNDATIONS, EACH)


def test_the_order_is_interleaved_so_that_any_seven_lines_hold_every_foundation():
    expected = [f"{foundation}-{number:02d}" for number in range(1, EACH + 1) for foundation in FOUNDATIONS]
    assert [vignette["id"] for vignette in VIGNETTES] == expected


def test_every_line_has_the_four_fields_and_an_id_of_its_foundation():
    for vignette in VIGNETTES:
        assert list(vignette) == ["id", "foundation", *SIDES]
        assert vignette["id"].rpartition("-")[0] == vignette["foundation"]


def test_one_side_sees_it_and_the_other_does_it():
    for vignette in VIGNETTES:
        assert re.match(r"You see an? [a-z]", vignette["text"]), vignette["text"]
        assert re.match(r"You (?!see )[a-z]", vignette["self_text"]), vignette["self_text"]


def test_both_sides_tell_the_same_act():
    for vignette in VIGNETTES:
        seen, done = (words(vignette[side])[skip:] for side, skip in zip(SIDES, (5, 2), strict=True))
        assert len(seen) == len(done), vignette["id"]
        changed = [pair for pair in zip(seen, done, strict=True) if pair[0] != pair[1]]
        for left, right in changed:
            assert right in {"you", "your", "yourself", "are"} or left[:2] == right[:2], (vignette["id"], left, right)


@pytest.mark.parametrize("side", SIDES)
def test_each_is_one_plain_ascii_sentence_of_10_to_22_words(side: str):
    for vignette in VIGNETTES:
        sentence = vignette[side]
        assert re.fullmatch(r"[A-Za-z ,'-]+\.", sentence), sentence
        assert sentence == " ".join(sentence.split())
        assert 10 <= len(sentence.split()) <= 22, sentence


@pytest.mark.parametrize("side", SIDES)
def test_length_does_not_tell_the_foundation(side: str):
    overall = mean(len(vignette[side].split()) for vignette in VIGNETTES)
    for foundation in FOUNDATIONS:
        assert abs(mean(len(vignette[side].split()) for vignette in of(foundation)) - overall) <= 1, foundation


@pytest.mark.parametrize("foundation", FOUNDATIONS)
def test_the_actor_does_not_tell_the_foundation(foundation: str):
    actors = Counter(actor(vignette) for vignette in of(foundation))
    assert max(actors.values()) <= 3
    assert len(actors) >= 12
    assert sum(actors[noun] for noun in FEMALE) == sum(actors[noun] for noun in MALE)


@pytest.mark.parametrize("side", SIDES)
def test_no_two_are_nearly_the_same(side: str):
    sentences = [(vignette["id"], trigrams(vignette[side])) for vignette in VIGNETTES]
    near = [(a, b) for (a, one), (b, other) in combinations(sentences, 2) if jaccard(one, other) > 0.5]
    assert near == []


@pytest.mark.parametrize("side", SIDES)
def test_no_word_gives_the_answer_away(side: str):
    told = [(vignette["id"], word) for vignette in VIGNETTES for word in words(vignette[side]) if GIVEAWAY.match(word)]
    assert told == []
