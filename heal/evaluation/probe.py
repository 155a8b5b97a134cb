"""The probe: can the model still answer at all? A yes/no slot, in the format that the model knows best.

The text of a probe is cut where the tokens of its two answers part, so that a tokenizer that merges the last
character of a prefill with an answer still has one answer slot. docs/method.md,
Forced choice and Coherence.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from heal.evaluation.signal import MIN_MASS
from heal.models.language_model import LanguageModel
from heal.models.packing import shared
from heal.scoring import next_token_logits

Ids = Sequence[int]


class NoSlot(ValueError):
    """The tokenizer has no token of its own for each option at an answer slot."""


@dataclass(frozen=True)
class ProbeFormat:
    """One way to put a yes/no slot.

    Attributes:
        name: as recorded with a run.
        hint: what follows a question, to say how to answer.
        prefill: the beginning of the answer to that question.
        yes, no: the answers that mean either.
        new_turn: whether a model that is interrupted is asked in a turn of its own; else it is made to say that it
            should answer now, and the slot follows at once.
    """

    name: str
    hint: str
    prefill: str
    yes: tuple[str, ...]
    no: tuple[str, ...]
    new_turn: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """All answers, those that mean yes first."""
        return self.yes + self.no


FORMATS = (
    ProbeFormat("json", 'Answer in JSON: {"value": true} or {"value": false}.', '{"value": ', ("true",), ("false",)),
    ProbeFormat("yes/no", "Answer Yes or No.", "Answer: ", ("Yes",), ("No",)),
    # Four letters, because a small model puts its mass on A to D whatever the options are.
    ProbeFormat(
        "letters",
        "(A) yes, surely\n(B) rather yes\n(C) rather no\n(D) surely not",
        "Answer: (",
        ("A", "B"),
        ("C", "D"),
        new_turn=True,
    ),
)
INTERRUPTION = "\nI should answer now. "
QUESTION = "Is ice cold?"  # of a probe in a turn of its own


@dataclass(frozen=True)
class Probe:
    """The format chosen for a model, and base's mean mass on the answers in each format that was tried."""

    format: ProbeFormat
    masses: dict[str, float]

    @property
    def mass(self) -> float:
        """Base's mean mass in the chosen format."""
        return self.masses[self.format.name]


def slot(model: LanguageModel, text: str, options: Sequence[str]) -> tuple[list[int], list[int]]:
    """The ids of `text` up to the answer slot, and the token of each option there.

    Raises:
        NoSlot: two options begin with the same token, so that one slot cannot tell them apart.
    """
    rows = [model.chat.plain_ids(text + option) for option in options]
    length = min(shared(rows[0], row) for row in rows[1:])
    answers = [row[length] for row in rows if len(row) > length]
    if len(set(answers)) < len(options):
        raise NoSlot(f"the tokenizer has no token of its own for each of {list(options)} after {text!r}")
    return rows[0][:length], answers


def interruption(model: LanguageModel, probe: ProbeFormat) -> tuple[list[int], list[int]]:
    """What is put after a text that goes on, up to the answer slot, and the answers' tokens there.

    Raises:
        NoSlot: the tokenizer has no such slot.
    """
    asked = model.chat.next_turn(f"{QUESTION}\n{probe.hint}") if probe.new_turn else INTERRUPTION
    return slot(model, asked + probe.prefill, probe.options)


def choose_probe(model: LanguageModel, texts: Sequence[Ids], base: Callable[[], AbstractContextManager[None]]) -> Probe:
    """The first format at whose slot base puts MIN_MASS on the answers, else the one where it puts most.

    Args:
        model: the model.
        texts: ids of rows that are interrupted by the probe: prompts with the beginning of an answer.
        base: context in which the model is the base.

    Raises:
        NoSlot: the tokenizer has no answer slot in any format.
    """
    masses: dict[str, float] = {}
    for form in FORMATS:
        try:
            splice, answers = interruption(model, form)
        except NoSlot:
            continue
        with base():
            p_NV = torch.softmax(next_token_logits(model, [[*row, *splice] for row in texts]), -1)
        masses[form.name] = float(p_NV[:, answers].sum(-1).mean())
    if not masses:
        raise NoSlot("the tokenizer has no answer slot in any format of the probe")
    best = next((name for name, mass in masses.items() if mass >= MIN_MASS), max(masses, key=lambda name: masses[name]))
    return Probe(next(form for form in FORMATS if form.name == best), masses)
