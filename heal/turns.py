"""A prompt of several turns, as one text: wherever a prompt is taken, written or shown, such a text may stand.

What does a nurse do?
⟨assistant⟩ She looks after people who are ill.
⟨user⟩ And who looks after her?
"""

import re
from collections.abc import Sequence

ROLES = ("user", "assistant")  # in turn; the user begins, and asks last
_SENTENCES = re.compile(r".*[.!?。！？।؟]", re.DOTALL)
_TURN = re.compile(r"\n⟨(user|assistant)⟩ ")


def turns_of(prompt: str) -> list[str]:
    """What was said in turn, first and last by the user.

    Raises:
        ValueError: it is not, or a turn is empty.
    """
    first, *rest = _TURN.split(prompt)
    texts = [first, *rest[1::2]]
    roles = ["user", *rest[::2]]
    if roles != [ROLES[turn % 2] for turn in range(len(texts))] or len(texts) % 2 == 0:
        raise ValueError(f"the turns of a prompt are the user's and the assistant's, the user's last, not {roles}")
    if len(texts) > 1 and not all(text.strip() for text in texts):
        raise ValueError("a turn of a prompt is empty")
    return texts


def has_turns(text: str) -> bool:
    """Whether marks of turns are in it."""
    return bool(_TURN.search(text))


def prompt_of(texts: Sequence[str]) -> str:
    """The prompt in which these were said in turn, first and last by the user.

    Raises:
        ValueError: see `turns_of`; or a text has a turn's mark in it.
    """
    first, *later = texts
    prompt = first + "".join(f"\n⟨{ROLES[turn % 2]}⟩ {text}" for turn, text in enumerate(later, 1))
    if turns_of(prompt) != list(texts):
        raise ValueError("a line begins with ⟨user⟩ or ⟨assistant⟩, which marks a turn")
    return prompt


def after_exchange(prompt: str, first: str, answer: str) -> str:
    """`prompt`, asked after `first` was asked and answered."""
    return prompt_of([*turns_of(first), answer, *turns_of(prompt)])


def whole_sentences(text: str) -> str:
    """A text that was broken off, up to the end of its last whole sentence; all of it where there is none."""
    found = _SENTENCES.match(text)
    return found[0] if found else text
