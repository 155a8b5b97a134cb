"""Drops completions that are broken, loop, talk about the trait, refuse, or repeat an earlier one.

Each test is a small pure function; `verdicts` applies them all. See docs/method.md, Generation and filter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heal.generation.refusals import REFUSALS
from heal.generation.words import length_of, lengths_before, words_of

if TYPE_CHECKING:
    from heal.config import FilterConfig

MIN_TAIL_TOKENS = 4
MIN_OCCURRENCES = 3  # of a piece that loops
SHORT_PIECE = 4  # words; the longest piece whose occurrences are counted wherever they are
LONG_PIECE = 5  # words; a piece of this length loops once it occurs twice in succession


@dataclass(frozen=True)
class FilterLimits:
    """The thresholds of the recipe's filter section."""

    max_tail_perplexity: float
    max_repetition: float
    min_words: int
    max_similarity: float

    @staticmethod
    def of(settings: FilterConfig) -> FilterLimits:
        """The recipe's."""
        return FilterLimits(
            settings.max_tail_perplexity, settings.max_repetition, settings.min_words, settings.max_similarity
        )


@dataclass(frozen=True)
class Candidate:
    """What the filter judges.

    Attributes:
        text: the completion.
        finite: whether all logits were.
        tail_perplexity: under base.
        looped: whether it loops, where that is known; None: its text says.
        unclosed: whether there is none, because the thought before it was not closed.
        off_prompt: whether it says too little about its prompt.
    """

    text: str
    finite: bool
    tail_perplexity: float
    looped: bool | None = None
    unclosed: bool = False
    off_prompt: bool = False


def reasons(candidate: Candidate, limits: FilterLimits, narration: Sequence[str]) -> list[str]:
    """Why a completion is dropped, apart from similarity to others; empty if it is kept."""
    if not candidate.finite:
        return ["not finite"]
    if candidate.unclosed:
        return ["unclosed thought"]
    failed = []
    if (length := length_of(candidate.text)) < limits.min_words or not length:
        failed.append("too short")
    if not candidate.tail_perplexity <= limits.max_tail_perplexity:  # NaN is dropped too
        failed.append("tail perplexity")
    looped = candidate.looped
    if repetition(candidate.text) > limits.max_repetition if looped is None else looped:
        failed.append("repetition")
    if candidate.off_prompt:
        failed.append("off prompt")
    if matches(candidate.text, narration):
        failed.append("narration")
    if matches(candidate.text, REFUSALS):
        failed.append("refusal")
    return failed


def verdicts(
    candidates: Sequence[Candidate],
    limits: FilterLimits,
    narration: Sequence[str],
    kept_before: Sequence[str] = (),
) -> list[list[str]]:
    """The reasons for each candidate, in order; near-duplicates of an earlier kept one are dropped as well."""
    kept = [_trigrams(text) for text in kept_before]
    dropped = []
    for candidate in candidates:
        why = reasons(candidate, limits, narration)
        if not why:
            grams = _trigrams(candidate.text)
            if any(_jaccard(grams, other) > limits.max_similarity for other in kept):
                why = ["duplicate"]
            else:
                kept.append(grams)
        dropped.append(why)
    return dropped


def repetition(text: str) -> float:
    """The fraction of a text that its most repeated piece makes up, in [0, 1]; 0 where nothing repeats.

    The largest of: the fraction of words that are the most frequent word; the fraction of character n-grams
    (n = 2, 3, 4; punctuation included) that are the most frequent one; the fraction of words covered by the most
    frequent word n-gram, which detects the loop of a phrase. A piece that occurs fewer than three times is no
    loop, except that pieces of LONG_PIECE words or more count if they follow immediately upon themselves: the
    fraction of words in the longest such stretch. In a script without spaces the words are characters, and pieces are
    as long as theirs in words (`heal.generation.words`).
    """
    words = words_of(text)
    before = lengths_before(words)
    characters = " ".join(text.lower().split())
    shares = [0.0]
    for n in range(1, 2 * SHORT_PIECE + 1):
        short = [i for i in range(len(words) - n + 1) if before[i + n] - before[i] <= SHORT_PIECE]
        phrases = Counter(tuple(words[i : i + n]) for i in short)
        count = max(phrases.values(), default=0)
        if count >= MIN_OCCURRENCES:
            shares.append(min(1.0, count * n / len(words)))
    for n in (2, 3, 4):
        grams = Counter(characters[i : i + n] for i in range(len(characters) - n + 1))
        count = max(grams.values(), default=0)
        if count >= MIN_OCCURRENCES:
            shares.append(count / sum(grams.values()))
    shares.append(_longest_loop(words, before) / max(1, len(words)))
    return max(shares)


def _longest_loop(words: Sequence[str], before: Sequence[float]) -> int:
    """Entries in the longest stretch that repeats a piece of LONG_PIECE words or more at least twice in succession."""
    longest = 0
    for period in range(LONG_PIECE, len(words) // 2 + 1):
        run = 0
        for place in range(period, len(words)):
            run = run + 1 if words[place] == words[place - period] else 0
            if run >= period and before[place + 1] - before[place + 1 - period] >= LONG_PIECE:
                longest = max(longest, run + period)
    return longest


def tail_length(tokens: int) -> int:
    """Number of tokens in the last quarter of a completion: at least MIN_TAIL_TOKENS, at most all."""
    return min(tokens, max(MIN_TAIL_TOKENS, -(-tokens // 4)))


def matches(text: str, patterns: Sequence[str]) -> bool:
    """Whether any of the regular expressions matches somewhere in the text, ignoring case."""
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)


def _trigrams(text: str) -> frozenset[tuple[str, ...]]:
    words = words_of(text)
    return frozenset(tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def _jaccard(a: frozenset, b: frozenset) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
