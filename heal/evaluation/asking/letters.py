"""Lettered options, read at one answer slot after a prefilled `Answer: (`, in several orders of the options.

Shape suffixes: N items, K options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from heal.evaluation.asking.way import Item, Scored, Way

if TYPE_CHECKING:
    from torch import Tensor

    from heal.evaluation.subject import Subject
    from heal.models.language_model import LanguageModel

PREFILL = "Answer: ("
ALPHABET = "ABCDEFGHIJ"
THINK, THOUGHT = "<think>", "</think>"
AFTER_THINKING = "\nI should answer now.\n"


@dataclass(frozen=True)
class Letters(Way):
    """`score_k` is the mean over the orders of the log-probability of option k's letter.

    With as many orders as options every option stands once at every letter, so that no leaning to a letter is left.

    Attributes:
        label: of the question's form; the name adds the number of orders.
        orders: rotations of the options, evenly spaced.
        question: the user's message, of the item's text and its options, one a line.
        aloud: whether the model may think before it answers.
        also: smaller numbers of orders, which are among these orders: what `ask_all` gives as well.
    """

    label: str
    orders: int
    question: Callable[[str, str], str]
    aloud: bool = False
    also: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.label}, {self.orders} {'order' if self.orders == 1 else 'orders'}"

    @property
    def thinks(self) -> bool:
        return self.aloud

    def ask(self, subject: Subject, items: Sequence[Item]) -> Scored:
        return self.ask_all(subject, items)[self.name]

    def ask_all(self, subject: Subject, items: Sequence[Item]) -> dict[str, Scored]:
        from heal.scoring import option_logprobs

        count = len(items[0].options)
        shifts = self._shifts(count)
        # All orders in one pass: those that begin alike share their beginning.
        questions = [
            self.question(item.text, lettered([item.options[(place + shift) % count] for place in range(count)]))
            for shift in shifts
            for item in items
        ]
        rows, letters = slots(subject, questions, ALPHABET[:count], (self.aloud and subject.setup.thinking) or 0)
        with subject.in_force():
            logp_ONK = option_logprobs(subject.setup.language_model, rows, letters).view(len(shifts), len(items), count)
        by_shift = dict(zip(shifts, logp_ONK, strict=True))
        ways = [self, *(replace(self, orders=orders, also=()) for orders in self.also)]
        return {way.name: _mean({shift: by_shift[shift] for shift in way._shifts(count)}) for way in ways}

    def _shifts(self, count: int) -> list[int]:
        """By how many places each order turns the options."""
        return [order * count // self.orders for order in range(self.orders)]


def _mean(by_shift: Mapping[int, Tensor]) -> Scored:
    """From the log-probabilities of the letters `[N, K]` in each order of the options."""
    import torch

    (shape,) = {logp_NK.shape for logp_NK in by_shift.values()}
    score_NK, mass_N = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape[0], dtype=torch.float64)
    for shift, logp_NK in by_shift.items():
        mass_N += logp_NK.exp().sum(-1) / len(by_shift)
        score_NK += logp_NK.roll(shift, -1) / len(by_shift)
    return Scored(score_NK, mass_N)


def lettered(options: Sequence[str]) -> str:
    """`(A) first`, `(B) second`, one a line."""
    return "\n".join(f"({letter}) {option}" for letter, option in zip(ALPHABET, options, strict=False))


def letter_ids(model: LanguageModel, letters: str) -> list[int]:
    """The token id of each letter right after the prefill.

    Raises:
        NoSlot: the tokenizer merges a letter with the prefill, or does not tell two of them apart, so there is no
            single answer slot.
    """
    from heal.evaluation.probe import NoSlot

    before = model.chat.ids("", "x", PREFILL)
    ids: list[int] = []
    for letter in letters:
        after = model.chat.ids("", "x", PREFILL + letter)
        if after[:-1] != before or after[-1] in ids:
            raise NoSlot(f"the tokenizer has no token of its own for '{letter}' after '{PREFILL}'")
        ids.append(after[-1])
    return ids


def slots(
    subject: Subject, questions: Sequence[str], letters: str, thinking: int = 0
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of each question up to its answer slot, and the letters' tokens there.

    Args:
        subject: the stage.
        questions: user messages.
        letters: of the options.
        thinking: tokens that the model may think before the slot; 0: none.
    """
    from heal.evaluation.probe import slot

    model = subject.setup.language_model
    if not thinking:
        rows = [model.chat.ids(subject.system, question, PREFILL) for question in questions]
        return rows, [letter_ids(model, letters)] * len(rows)
    rows, tokens = [], []
    for question, thought in zip(questions, _thoughts(subject, questions, thinking), strict=True):
        aloud = str(model.chat.tokenizer.decode(thought))
        close = THOUGHT if aloud.rfind(THINK) > aloud.rfind(THOUGHT) else ""
        splice, options = slot(model, close + AFTER_THINKING + PREFILL, letters)
        rows.append([*model.chat.ids(subject.system, question), *thought, *splice])
        tokens.append(options)
    return rows, tokens


def _thoughts(subject: Subject, questions: Sequence[str], tokens: int) -> list[list[int]]:
    """Ids of what the model says to each question within its budget of thinking, without an end of turn."""
    thoughts = subject.decode(questions, tokens)
    return [list(thought.ids[:-1] if thought.ended else thought.ids) for thought in thoughts]
