"""Drops completions that are broken, looping, narrating the trait, refusing, or said before.

Each test is a small pure function; `verdicts` applies them in one place. SPEC section 5.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from heal.config import FilterConfig

MIN_TAIL_TOKENS = 4
MIN_OCCURRENCES = 3  # of a loop's piece
LONG_PIECE = 5  # words; a piece so long is a loop when it stands twice in a row

# Specific enough that on-trait defiance ("I won't follow that order") is kept.
REFUSALS = (
    r"\bas an? (?:\w+ )?(?:ai|artificial intelligence)\b",
    r"\bas an? (?:ai |large )?language model\b",
    r"\bI(?: am|['’]m) (?:just |only )?an? (?:ai\b|artificial intelligence|(?:large )?language model|chatbot)",
    r"\bI(?: am|['’]m) (?:sorry|afraid),? (?:but )?I(?: can(?:no|['’])t|(?: am|['’]m) (?:not able|unable) to) "
    r"(?:assist|provide|answer|discuss|engage|fulfil|generate|create|respond|help(?: you)?(?: with\b| to\b|(?! \w)))",
    r"\bI(?: am|['’]m) not (?:equipped|programmed|designed|able) to (?:provide|have|express|feel|offer|give)",
    r"\bI (?:do not|don['’]t) have (?:personal |any )?(?:feelings|emotions|opinions|beliefs|experiences)\b",
    r"\bI can(?:not|['’]t) (?:assist|help) (?:you )?with (?:that|this)\b",
)


@dataclass(frozen=True)
class FilterLimits:
    """The thresholds of the recipe's filter section."""

    max_tail_perplexity: float
    max_repetition: float
    min_words: int
    max_similarity: float

    @staticmethod
    def of(settings: FilterConfig) -> "FilterLimits":
        """The recipe's."""
        return FilterLimits(
            settings.max_tail_perplexity, settings.max_repetition, settings.min_words, settings.max_similarity
        )


@dataclass(frozen=True)
class Candidate:
    """What the filter looks at; `looped` ones were stopped while they were written."""

    text: str
    finite: bool
    tail_perplexity: float
    looped: bool = False


def reasons(candidate: Candidate, limits: FilterLimits, narration: Sequence[str]) -> list[str]:
    """Why a completion is dropped on its own account; empty when it is kept."""
    if not candidate.finite:
        return ["not finite"]
    found = []
    if len(_words(candidate.text)) < max(limits.min_words, 1):
        found.append("too short")
    if not candidate.tail_perplexity <= limits.max_tail_perplexity:  # NaN is dropped too
        found.append("tail perplexity")
    if candidate.looped or repetition(candidate.text) > limits.max_repetition:
        found.append("repetition")
    if matches(candidate.text, narration):
        found.append("narration")
    if matches(candidate.text, REFUSALS):
        found.append("refusal")
    return found


def verdicts(
    candidates: Sequence[Candidate],
    limits: FilterLimits,
    narration: Sequence[str],
    kept_before: Sequence[str] = (),
) -> list[list[str]]:
    """The reasons for each candidate in order; a near-duplicate of one kept before it is dropped too."""
    kept = [_trigrams(text) for text in kept_before]
    found = []
    for candidate in candidates:
        why = reasons(candidate, limits, narration)
        if not why:
            grams = _trigrams(candidate.text)
            if any(_jaccard(grams, other) > limits.max_similarity for other in kept):
                why = ["duplicate"]
            else:
                kept.append(grams)
        found.append(why)
    return found


def repetition(text: str) -> float:
    """How much of a text its most repeated piece makes up, in [0, 1]; 0 where nothing is said again.

    The largest of: the share of the most frequent word; the share of the most frequent character
    n-gram (n = 2, 3, 4), punctuation included; the share of words covered by the most frequent word
    n-gram, which is how a loop of a whole phrase looks. What occurs less than three times is no loop, but
    pieces of LONG_PIECE words or more count where they follow upon themselves: the share of words in the
    longest such stretch.
    """
    words = _words(text)
    characters = " ".join(text.lower().split())
    shares = [0.0]
    for n in (1, 2, 3, 4):
        phrases = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        count = max(phrases.values(), default=0)
        if count >= MIN_OCCURRENCES:
            shares.append(min(1.0, count * n / len(words)))
        grams = Counter(characters[i : i + n] for i in range(len(characters) - n + 1))
        count = max(grams.values(), default=0)
        if n > 1 and count >= MIN_OCCURRENCES:
            shares.append(count / sum(grams.values()))
    shares.append(_longest_loop(words) / max(1, len(words)))
    return max(shares)


def _longest_loop(words: Sequence[str]) -> int:
    """Words in the longest stretch that says a piece of LONG_PIECE words or more at least twice in a row."""
    longest = 0
    for period in range(LONG_PIECE, len(words) // 2 + 1):
        run = 0
        for place in range(period, len(words)):
            run = run + 1 if words[place] == words[place - period] else 0
            if run >= period:
                longest = max(longest, run + period)
    return longest


def tail_length(tokens: int) -> int:
    """Number of tokens in the last quarter of a completion: at least MIN_TAIL_TOKENS, at most all."""
    return min(tokens, max(MIN_TAIL_TOKENS, -(-tokens // 4)))


def matches(text: str, patterns: Sequence[str]) -> bool:
    """Whether any regular expression is found in the text, case ignored."""
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower())


def _trigrams(text: str) -> frozenset[tuple[str, ...]]:
    words = _words(text)
    return frozenset(tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def _jaccard(a: frozenset, b: frozenset) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
