"""The general questions, those asked and those held apart: one right option each, in every field and level."""

import hashlib
import json
import re
from collections import Counter
from itertools import combinations, product
from typing import Any

from heal.evaluation.readouts.questions import APART, QUESTIONS, items_of

FIELDS = ("everyday", "nature", "physics", "geography", "history", "language", "mathematics", "society")
LEVELS = (1, 2, 3, 4)
PARTS = {QUESTIONS: 5, APART: 2}  # runs of 32 from the beginning that hold every field at every level once
# Of what the 60 questions say that there were before several ways of asking: runs go on with them.
BEFORE = "72bdec4531cb5c06d6d42eee79c9c7701e6aad60207d5335fbbc5ce2408c938e"
ROWS = {path: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in PARTS}


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[\w']+", text.lower()))


def test_there_are_240_questions_and_64_apart_each_with_an_id_of_its_own():
    for path, prefix, count in ((QUESTIONS, "", 240), (APART, "apart-", 64)):
        ids = [row["id"] for row in ROWS[path]]
        assert sorted(ids) == [f"{prefix}q{number:03d}" for number in range(1, count + 1)], path.name


def test_every_question_has_one_right_option_of_four_and_every_letter_is_right_as_often():
    for path, rows in ROWS.items():
        for row in rows:
            assert list(row) == ["id", "field", "level", "question", "options", "answer"]
            assert len({option.lower() for option in row["options"]}) == 4, row
            assert all(option and option == option.strip() for option in (*row["options"], row["question"])), row
            assert row["question"][-1] in "?.:", row
            assert (row["question"] + "".join(row["options"])).isprintable(), row
        assert Counter(row["answer"] for row in rows) == dict.fromkeys(range(4), len(rows) // 4), path.name


def test_each_32_questions_from_the_beginning_hold_every_field_at_every_level():
    for path, parts in PARTS.items():
        assert {(row["field"], row["level"]) for row in ROWS[path]} == set(product(FIELDS, LEVELS))
        for start in range(0, 32 * parts, 32):
            part = [(row["field"], row["level"]) for row in ROWS[path][start : start + 32]]
            assert sorted(part) == sorted(product(FIELDS, LEVELS)), (path.name, start)
        for start in range(0, 32 * parts, 8):
            assert {row["field"] for row in ROWS[path][start : start + 8]} == set(FIELDS), (path.name, start)


def test_no_question_is_asked_twice_nor_any_that_is_held_apart():
    """Few words make a question another one (of a day, of up); the same words with the same options do not."""

    def said(row: dict[str, Any]) -> frozenset[str]:
        return words(" ".join((row["question"], *row["options"])))

    every = [(row["question"], said(row)) for rows in ROWS.values() for row in rows]
    near = [(a, b) for (a, one), (b, other) in combinations(every, 2) if len(one & other) > 0.6 * len(one | other)]
    assert near == []
    assert len({question.lower() for question, _ in every}) == 240 + 64


def test_a_run_that_chose_no_way_of_asking_begins_with_the_questions_that_there_were_before():
    """The first 16 in the order of their ids, and 60 in all; any other run takes the questions as they stand."""
    by_id = {row["id"]: row["question"] for row in ROWS[QUESTIONS]}
    before = [item.text for item in items_of(QUESTIONS, by_id=True)]
    assert before[:16] == [by_id[f"q{number:03d}"] for number in range(1, 17)]
    assert sorted(before) == sorted(by_id.values())
    first = [(item.text, item.options, item.right) for item in items_of(QUESTIONS, by_id=True)[:60]]
    assert hashlib.sha256(repr(first).encode()).hexdigest() == BEFORE
    items = items_of(QUESTIONS)
    assert [(item.text, list(item.options), item.right) for item in items] == [
        (row["question"], row["options"], row["answer"]) for row in ROWS[QUESTIONS]
    ]
