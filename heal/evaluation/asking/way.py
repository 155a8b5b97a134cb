"""What a forced choice is, what a way of asking it gives, and the record of the way that was chosen for a model.

Shape suffixes: N items, K options.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from heal.evaluation.stats import Estimate

if TYPE_CHECKING:
    from torch import Tensor

    from heal.evaluation.subject import Subject


@dataclass(frozen=True)
class Item:
    """What is asked about, what can be answered, and the index of the right answer."""

    text: str
    options: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Scored:
    """What a stage says to the items.

    Attributes:
        score_NK: nats, float64, up to a constant for each item; NaN where an item could not be scored.
        mass_N: the full-vocabulary probability of the options at their slot; None where there is no slot.
    """

    score_NK: Tensor
    mass_N: Tensor | None

    def chosen(self) -> list[int]:
        """The option with the highest score, by item; -1 where the item could not be scored."""
        known = ~self.score_NK.isnan().any(-1)
        return [int(best) if ok else -1 for best, ok in zip(self.score_NK.argmax(-1), known, strict=True)]


class Way(ABC):
    """One way of asking. All items of a call have the same number of options."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As recorded with a run."""

    @property
    def thinks(self) -> bool:
        """Whether the model may think aloud before it answers (`evaluation.thinking`)."""
        return False

    @abstractmethod
    def ask(self, subject: Subject, items: Sequence[Item]) -> Scored:
        """Scores every option of every item at a stage.

        Raises:
            NoSlot: the tokenizer has no answer slot for this way.
        """

    def ask_all(self, subject: Subject, items: Sequence[Item]) -> dict[str, Scored]:
        """The same by name, with those ways whose scores come of the same passes."""
        return {self.name: self.ask(subject, items)}


@dataclass(frozen=True)
class ForcedChoice:
    """A question with few answers: the ways of asking it, and items that no evaluation uses, to choose by.

    Attributes:
        name: as recorded with a run.
        ways: by name, in the order in which equally informative ones are preferred.
        apart: the items held apart.
        before: the way of runs that were started before several were tried.
        centred: whether all items have the same options, so that base's leaning to one of them can be subtracted.
        asked: whether the run asks it at all.
    """

    name: str
    ways: Mapping[str, Way]
    apart: tuple[Item, ...]
    before: str
    centred: bool
    asked: bool = True


@dataclass(frozen=True)
class Tried:
    """What a way came to on base, on the items held apart.

    Attributes:
        informedness: macro average of TPR - FPR; its interval allows for the number of ways that were tried.
        halves: the same of every other item, from the first and from the second on.
        mass: mean probability on the options at their slot; None where there is no slot.
        accuracy: fraction of right answers.
        valid, why: whether a choice asked this way says something about the model.
    """

    informedness: Estimate
    halves: tuple[float, float]
    mass: float | None
    accuracy: float
    valid: bool
    why: str


@dataclass(frozen=True)
class Asking:
    """How one forced choice is put to a model, for a whole run.

    Attributes:
        way: the name of one of its ways.
        offset: base's mean score of each option, less their mean, nats: subtracted at every stage. Empty: nothing is.
        label: the way's name, with `, centred` where there is an offset: its key in `tried`.
        tried: the figures of every way, centred and not.
    """

    way: str
    offset: tuple[float, ...] = ()
    label: str = ""
    tried: dict[str, Tried] = field(default_factory=dict)

    @property
    def judged(self) -> Tried | None:
        """The figures of the chosen way; None in a run that tried none."""
        return self.tried.get(self.label)


def ask(choice: ForcedChoice, subject: Subject, items: Sequence[Item]) -> Scored:
    """What a stage says to `items` in the way that was chosen for the model."""
    asking = subject.setup.asking.get(choice.name)
    scored = choice.ways[subject.setup.way_of(choice)].ask(subject, items)
    return scored if asking is None else centred(scored, asking.offset)


def centred(scored: Scored, offset: Sequence[float]) -> Scored:
    """The scores without a leaning to some options; the same where `offset` is empty."""
    if not offset:
        return scored
    import torch

    return Scored(scored.score_NK - torch.tensor(offset, dtype=torch.float64), scored.mass_N)
