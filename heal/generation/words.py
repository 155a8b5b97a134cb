"""The words of a text, in any language.

A word is a run of letters, digits and the marks upon them, as the default rules of Unicode Standard Annex 29 have it.
Scripts that put no space between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) would require a dictionary; there
each character as a reader sees it, a grapheme cluster, is taken as half a word.
"""

import unicodedata
from collections.abc import Sequence
from itertools import accumulate

import regex

UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ーｰ\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]&&[\p{L}\p{Nl}]"
LETTER = rf"[[\p{{L}}\p{{N}}]--[{UNSPACED}]]"
RUN = rf"{LETTER}(?:{LETTER}|[\p{{M}}\u200c\u200d])*"  # ZWNJ and ZWJ shape Persian and Hindi words from within
JOINT = r"""(?:['’׳]|(?<=\p{Hebrew})["״](?=\p{Hebrew}))"""
WORD = regex.compile(rf"(?=[{UNSPACED}])\X|{RUN}(?:{JOINT}{RUN})*", regex.V1)
CHARACTER = regex.compile(rf"(?=[{UNSPACED}])\X", regex.V1)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; single characters in scripts without spaces."""
    return WORD.findall(unicodedata.normalize("NFC", text.lower()))


def lengths_before(words: Sequence[str]) -> list[float]:
    """[len(words) + 1] the length of each beginning in words: a character of a script without spaces is half a word."""
    return list(accumulate((0.5 if CHARACTER.match(word) else 1.0 for word in words), initial=0.0))


def length_of(text: str) -> float:
    """The length of a text in words."""
    return lengths_before(words_of(text))[-1]
