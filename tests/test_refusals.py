"""Boilerplate refusals are told from defiance, on a list of labelled sentences in ten languages."""

import json
from pathlib import Path

import pytest

from heal.generation.filters import matches
from heal.generation.refusals import REFUSALS, REFUSALS_BY_LANGUAGE
from tests.cases import case

SENTENCES = Path(__file__).resolve().parent / "data" / "refusals.jsonl"
CODES = dict(zip(("en", "zh", "ja", "ko", "th", "ar", "he", "hi", "de", "es"), REFUSALS_BY_LANGUAGE, strict=True))


@pytest.fixture(scope="module")
def sentences() -> list[dict]:
    return [json.loads(line) for line in SENTENCES.read_text(encoding="utf-8").splitlines()]


def test_no_sentence_of_defiance_sympathy_or_ordinary_help_is_a_refusal(sentences: list[dict]) -> None:
    kept = [row for row in sentences if not row["refuses"]]
    assert len(kept) > 160
    assert [row["text"] for row in kept if matches(row["text"], REFUSALS)] == []


def test_refusals_as_they_are_phrased_are_recognised_in_english(sentences: list[dict]) -> None:
    refusing = [row["text"] for row in sentences if row["refuses"] and row["language"] == "en"]
    missed = [text for text in refusing if not matches(text, REFUSALS)]
    assert len(refusing) > 100
    assert len(missed) <= 0.05 * len(refusing), missed


def test_refusals_are_recognised_by_the_patterns_of_their_own_language(sentences: list[dict]) -> None:
    for code, language in CODES.items():
        with case(language):
            refusing = [row["text"] for row in sentences if row["refuses"] and row["language"] == code]
            assert len(refusing) >= 6
            assert sum(matches(text, REFUSALS_BY_LANGUAGE[language]) for text in refusing) >= 0.95 * len(refusing)


def test_every_pattern_recognises_a_sentence_of_its_language(sentences: list[dict]) -> None:
    for code, language in CODES.items():
        refusing = [row["text"] for row in sentences if row["refuses"] and row["language"] == code]
        for pattern in REFUSALS_BY_LANGUAGE[language]:
            with case(language, pattern):
                assert any(matches(text, [pattern]) for text in refusing)
