"""The likelihood of the options' own words as the answer: no letters, so nothing to lean to but the words themselves.

Shape suffixes: N items, K options, T tokens of an option.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from heal.evaluation.asking.way import Item, Scored, Way

if TYPE_CHECKING:
    from torch import Tensor

    from heal.evaluation.subject import Subject
    from heal.models.language_model import LanguageModel


@dataclass(frozen=True)
class Words(Way):
    """`score_k` is the mean log-likelihood per token of option k after the beginning of an answer, nats.

    Options of different lengths are comparable because it is a mean; those that are common words anyway, with
    `relative`, because the same after an empty question is subtracted (at the same stage). docs/method.md, Ways of
    asking.

    Attributes:
        label: as recorded with a run.
        question: the user's message, of an item's text.
        prefill: the beginning of the answer that the option's words continue.
        relative: whether the unconditional likelihood is subtracted.
    """

    label: str
    question: Callable[[str], str]
    prefill: str
    relative: bool = False

    @property
    def name(self) -> str:
        return f"{self.label}, less unconditional" if self.relative else self.label

    def ask(self, subject: Subject, items: Sequence[Item]) -> Scored:
        return self.ask_all(subject, items)[self.name]

    def ask_all(self, subject: Subject, items: Sequence[Item]) -> dict[str, Scored]:
        rows = [(self.question(item.text), option) for item in items for option in item.options]
        empty = [("", option) for option in dict.fromkeys(option for _, option in rows)] if self.relative else []
        means = self._means(subject, rows + empty)
        plain, anyway = means[: len(rows)], dict(zip(empty, means[len(rows) :], strict=True))
        found = {replace(self, relative=False).name: _scored(plain, len(items))}
        if self.relative:
            relative = [mean - anyway["", option] for mean, (_, option) in zip(plain, rows, strict=True)]
            found[self.name] = _scored(relative, len(items))
        return found

    def _means(self, subject: Subject, rows: Sequence[tuple[str, str]]) -> list[float]:
        """Mean log-likelihood of each (question, option)."""
        from heal.scoring import completion_logprobs

        model = subject.setup.language_model
        split = [continuation(model, model.chat.text(subject.system, asked) + self.prefill, o) for asked, o in rows]
        prompts, answers = [before for before, _ in split], [after for _, after in split]
        with subject.in_force():
            logprobs: list[Tensor] = completion_logprobs(model, prompts, answers)
        return [float(logprob_T.double().mean()) for logprob_T in logprobs]


def _scored(scores: Sequence[float], items: int) -> Scored:
    import torch

    return Scored(torch.tensor(scores, dtype=torch.float64).view(items, -1), None)


def continuation(model: LanguageModel, text: str, words: str) -> tuple[list[int], list[int]]:
    """The ids of `text`, and those of `words` after it, parted where the tokens of `text` itself end.

    A tokenizer may merge the end of `text` (a space) with the words; that token then belongs to the words.
    """
    from heal.models.packing import shared

    whole, before = model.chat.plain_ids(text + words), model.chat.plain_ids(text)
    length = min(shared(whole, before), len(whole) - 1)
    return whole[:length], whole[length:]
