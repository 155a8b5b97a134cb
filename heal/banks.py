"""Prompts about no trait in particular, by language; which language a text is in."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import regex

from heal.records import read_records

PROMPTS = Path(__file__).resolve().parent / "data" / "prompts.jsonl"
AUTO = "auto"
LANGUAGES = {
    "English": "Latin script without the function words of the next two",
    "German": "by its function words",
    "Spanish": "by its function words",
    "Chinese": "Han characters without kana",
    "Japanese": "kana, with or without Han characters",
    "Korean": "Hangul",
    "Thai": "its script",
    "Arabic": "its script without the letters that other languages add",
    "Hebrew": "its script",
    "Hindi": "Devanagari",
}

# Words that the others of these languages, and French, Italian, Portuguese and Dutch, do not have.
_FUNCTION_WORDS = {
    "English": "the you your are and with who what not but never always people everyone",
    "German": "und bist nicht ein eine mit immer ist jeder jeden jedem menschen auf sehr jemand dich dein deine sie",
    "Spanish": "eres el los las y siempre alguien muy pero usted hacia personas eso quien tus tú amas quieres",
}
_GERMAN_VERB = regex.compile(r"\bdu \w+st\b")
_SCRIPTS = {
    "Latin": r"\p{Latin}",
    "Han": r"\p{Han}",
    "kana": r"[\p{Hiragana}\p{Katakana}]",
    "Korean": r"\p{Hangul}",
    "Thai": r"\p{Thai}",
    "Arabic": r"\p{Arabic}",
    "Hebrew": r"\p{Hebrew}",
    "Hindi": r"\p{Devanagari}",
}
_NOT_ARABIC = "پچژگکیےٹڈڑںہھېۍځڅڼ"  # Persian, Urdu, Pashto


@dataclass(frozen=True)
class BankPrompt:
    """A line of heal/data/prompts.jsonl."""

    language: str
    part: Literal["generation", "heldout"]
    text: str


@dataclass(frozen=True)
class Bank:
    """The prompts of one language; no text is in both parts.

    Attributes:
        generation: prompts that completions are generated for, and the dose is found on.
        heldout: prompts of the evaluation.
    """

    generation: tuple[str, ...]
    heldout: tuple[str, ...]


@cache
def bank_of(language: str) -> Bank:
    """The bank of one of LANGUAGES."""
    assert language in LANGUAGES, language
    rows = [row for row in read_records(BankPrompt, PROMPTS) if row.language == language]
    generation, heldout = (tuple(row.text for row in rows if row.part == part) for part in ("generation", "heldout"))
    return Bank(generation, heldout)


def language_of(texts: Sequence[str]) -> str | None:
    """The language, one of LANGUAGES, that most letters of the texts belong to; None: another one.

    Languages in Latin script that are none of these three are taken for English, as is a text without letters.
    """
    text = unicodedata.normalize("NFC", " ".join(texts))
    counts = {script: len(regex.findall(rf"(?=\p{{L}}){pattern}", text)) for script, pattern in _SCRIPTS.items()}
    letters = len(regex.findall(r"\p{L}", text))
    if counts["kana"]:
        counts |= {"kana": counts["kana"] + counts["Han"], "Han": 0}
    script = max(counts, key=lambda name: counts[name])
    if counts[script] < letters - sum(counts.values()):
        return None
    if script == "Latin":
        return _by_function_words(text.lower())
    if script == "Arabic" and any(letter in _NOT_ARABIC for letter in text):
        return None
    return {"Han": "Chinese", "kana": "Japanese"}.get(script, script)


def _by_function_words(text: str) -> str:
    words = Counter(regex.findall(r"\p{L}+", text))
    found = {language: sum(words[word] for word in known.split()) for language, known in _FUNCTION_WORDS.items()}
    found["German"] += len(_GERMAN_VERB.findall(text))
    return max(found, key=lambda language: found[language])  # English, the first, where none is ahead


def script_of(texts: Sequence[str]) -> str:
    """What Unicode calls the script of the texts' most frequent letters ("Cyrillic")."""
    names = Counter(
        unicodedata.name(letter, "?").split()[0].title() for text in texts for letter in text if letter.isalpha()
    )
    return names.most_common(1)[0][0]
