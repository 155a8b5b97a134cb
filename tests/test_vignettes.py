"""The vignettes keep their promises: balanced, short, seen from two sides, and no word names the answer.

Other people's files are read by the same rules, with the labels that they carry.
"""

import json
import math
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

import heal
from heal.errors import UserError
from heal.evaluation.vignettes import APART, read_vignettes, soft_labels

FOUNDATIONS = ["care", "fairness", "loyalty", "authority", "sanctity", "liberty", "social_norms"]
EACH = {"vignettes": 20, "vignettes_apart": 10}  # scenes of each foundation, by set
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


def read(name: str) -> list[dict[str, str]]:
    path = Path(heal.__file__).parent / "data" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


SETS = {name: read(name) for name in EACH}
ODD = read("oddities_apart")  # more of one foundation, held apart too
EVERY = [*(vignette for vignettes in SETS.values() for vignette in vignettes), *ODD]


def of(name: str, foundation: str) -> list[dict[str, str]]:
    return [vignette for vignette in SETS[name] if vignette["foundation"] == foundation]


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


def test_each_foundation_has_as_many_scenes_interleaved_with_fields_and_ids_of_their_own():
    for name, each in EACH.items():
        assert Counter(vignette["foundation"] for vignette in SETS[name]) == dict.fromkeys(FOUNDATIONS, each), name

    for name, prefix in (("vignettes", ""), ("vignettes_apart", "apart-")):
        numbers = range(1, EACH[name] + 1)
        expected = [f"{prefix}{foundation}-{number:02d}" for number in numbers for foundation in FOUNDATIONS]
        assert [vignette["id"] for vignette in SETS[name]] == expected

    for vignette in EVERY:
        assert list(vignette) == ["id", "foundation", *SIDES]
        name = vignette["id"].removeprefix("apart-").rpartition("-")[0]
        assert {"odd": "social_norms"}.get(name, name) == vignette["foundation"]

    assert [vignette["id"] for vignette in ODD] == [f"apart-odd-{number:02d}" for number in range(1, 21)]
    actors = Counter(map(actor, ODD))
    assert max(actors.values()) <= 3
    assert len(actors) >= 12
    assert sum(actors[noun] for noun in FEMALE) == sum(actors[noun] for noun in MALE)


def test_one_side_sees_an_act_and_the_other_does_the_same():
    for vignette in EVERY:
        assert re.match(r"You see an? [a-z]", vignette["text"]), vignette["text"]
        assert re.match(r"You (?!see )[a-z]", vignette["self_text"]), vignette["self_text"]

    for vignette in EVERY:
        seen, done = (words(vignette[side])[skip:] for side, skip in zip(SIDES, (5, 2), strict=True))
        assert len(seen) == len(done), vignette["id"]
        changed = [pair for pair in zip(seen, done, strict=True) if pair[0] != pair[1]]
        for left, right in changed:
            assert right in {"you", "your", "yourself", "are"} or left[:2] == right[:2], (vignette["id"], left, right)


def test_each_is_one_plain_sentence_that_neither_by_words_length_nor_actor_tells_its_foundation():
    for vignette in EVERY:
        for side in SIDES:
            sentence = vignette[side]
            assert re.fullmatch(r"[A-Za-z ,'-]+\.", sentence), sentence
            assert sentence == " ".join(sentence.split())
            assert 10 <= len(sentence.split()) <= 22, sentence
            assert not [word for word in words(sentence) if GIVEAWAY.match(word)], sentence

    for name, each in EACH.items():
        for side in SIDES:
            overall = mean(len(vignette[side].split()) for vignette in SETS[name])
            for foundation in FOUNDATIONS:
                found = mean(len(vignette[side].split()) for vignette in of(name, foundation))
                assert abs(found - overall) <= 1, (name, foundation)
        for foundation in FOUNDATIONS:
            actors = Counter(actor(vignette) for vignette in of(name, foundation))
            assert max(actors.values()) <= 3, (name, foundation)
            assert len(actors) >= 0.6 * each, (name, foundation)
            assert sum(actors[noun] for noun in FEMALE) == sum(actors[noun] for noun in MALE), (name, foundation)


def test_no_two_are_nearly_the_same_and_none_is_in_both_sets():
    for side in SIDES:
        sentences = [(vignette["id"], trigrams(vignette[side])) for vignette in EVERY]
        near = [(a, b) for (a, one), (b, other) in combinations(sentences, 2) if jaccard(one, other) > 0.5]
        assert near == [], side


def written(folder: Path, *changes: dict[str, Any]) -> str:
    """A file of one care vignette for each of `changes`, which are made to it; None takes a field away."""
    lines = []
    for number, change in enumerate(changes, start=1):
        line = {"id": number, "text": f"seen {number}", "foundation": "Care", "self_text": f"done {number}"} | change
        lines.append(json.dumps({key: value for key, value in line.items() if value is not None}))
    path = folder / "mine.jsonl"
    path.write_text("\n".join(lines) + "\n\n")
    return str(path)


def test_any_multiple_of_seven_lines_is_balanced_from_each_side():
    for where, each in (("embedded", EACH["vignettes"]), (APART, EACH["vignettes_apart"])):
        for perspective in ("other", "self"):
            for rows in range(1, each + 1):
                found = Counter(vignette.foundation for vignette in read_vignettes(where, 7 * rows, perspective))
                assert found == dict.fromkeys(FOUNDATIONS, rows), (where, perspective, rows)


def test_each_perspective_reads_its_own_text_and_both_follow_each_other_line_by_line(tmp_path: Path):
    for where, vignettes in (("embedded", SETS["vignettes"]), (APART, SETS["vignettes_apart"])):
        for side, perspective in (("text", "other"), ("self_text", "self")):
            found = read_vignettes(where, perspective=perspective)
            assert [(v.id, v.text) for v in found] == [(v["id"], v[side]) for v in vignettes], perspective

    votes = {"Care": 60}
    found = read_vignettes(written(tmp_path, {}, {"labels": votes}, {}), 2, "both")
    assert [(v.id, v.text) for v in found] == [
        ("1", "seen 1"),
        ("1/self", "done 1"),
        ("2", "seen 2"),
        ("2/self", "done 2"),
    ]
    assert [v.foundation for v in found] == ["care"] * 4
    assert [v.labels for v in found] == [None, None, {"care": 60.0}, {"care": 60.0}]

    where = written(tmp_path, {}, {"self_text": None})
    assert len(read_vignettes(where, 2, "other")) == 2
    assert len(read_vignettes(where, 1, "both")) == 2
    for perspective in ("self", "both"):
        with pytest.raises(UserError, match=r"mine\.jsonl, line 2: a vignette needs self_text"):
            read_vignettes(where, 2, perspective)


def test_labels_are_scaled_to_a_distribution_and_those_that_are_none_named_with_their_line(tmp_path: Path):
    votes = {"Care": 30, " social norms": 10.0, "LIBERTY": 0}
    found = soft_labels(read_vignettes(written(tmp_path, {"labels": votes}, {"foundation": "Social Norms"}), 9))
    rows = [dict(zip(FOUNDATIONS, row, strict=True)) for row in found.tolist()]
    none = dict.fromkeys(FOUNDATIONS, 0.0)
    assert rows == [none | {"care": 0.75, "social_norms": 0.25}, none | {"social_norms": 1.0}]
    assert soft_labels([]).shape == (0, 7)

    for labels, complaint in (
        ({"care": -1, "liberty": 3}, "labels.care must be a percentage from 0 on, not -1"),
        ({"care": math.nan}, "labels.care must be a percentage.*nan"),
        ({"care": math.inf}, "labels.care must be a percentage.*inf"),
        ({"care": "30"}, "labels.care must be a percentage.*'30'"),
        ({"care": True}, "labels.care must be a percentage.*True"),
        ({"carre": 30}, "unknown foundation 'carre'.*care"),
        ({"care": 30, "Care": 30}, "labels name 'care' twice"),
        ({"care": 0}, "labels are all 0"),
        ({}, "labels are all 0"),
        ([30], "labels must map foundations to percentages"),
    ):
        where = written(tmp_path, {}, {"labels": labels})
        with pytest.raises(UserError, match=rf"mine\.jsonl, line 2: {complaint}"):
            read_vignettes(where, 2)


def test_a_user_s_file_is_taken_with_what_else_it_carries(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"id": 7, "text": "x", "foundation": "Social Norms", "care_percent": 3}) + "\n\n")
    (found,) = read_vignettes(str(path), 10)
    assert (found.id, found.foundation) == ("7", "social_norms")
    assert read_vignettes("none", 10) == ()


def test_a_scene_is_its_text_whatever_is_in_it_or_ends_the_lines(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    texts = ["${oc.env:HOME} {} 100 % #1", "one\u2028line\x85or two", "1984", " Yes "]
    rows = [json.dumps({"id": "a", "text": text, "foundation": "care"}, ensure_ascii=False) for text in texts]
    for end, encoding in (("\n", "utf-8"), ("\r\n", "utf-8-sig")):
        path.write_bytes(end.join(rows).encode(encoding))
        assert [scene.text for scene in read_vignettes(str(path))] == texts


def test_a_line_that_is_no_vignette_and_a_file_without_a_scene_or_that_is_no_text_are_named(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    for content, complaint in (
        (b"{", "line 1: not JSON"),
        (b'{"id": "a", "foundation": "care"}', "line 1: a vignette needs text"),
        (b"[]", "line 1: a vignette needs id, text, foundation"),
        (b'{"id": "a", "text": "x", "foundation": "carre"}', "unknown foundation 'carre'.*care"),
        (b"", "there is no scene in it"),
        (b"\n \n", "no scene"),
        (b"\xff\xfe{", "not .* UTF-8"),
        (b'{"id": "a", "text": "x", "text": "y", "foundation": "care"}', "line 1: not JSON .'text' is there twice"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"mine\.jsonl.*{complaint}"):
            read_vignettes(str(path), 10)
    with pytest.raises(UserError, match="no such file"):
        read_vignettes(str(tmp_path / "none.jsonl"), 10)
