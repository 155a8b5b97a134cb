"""What an export is made from: a student, and how its base is loaded again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from heal.accumulator import Accumulator
from heal.config import ModelConfig
from heal.models.agreement import Agreement
from heal.models.language_model import LanguageModel
from heal.trait import Trait

# The README of an export, given its rank (None: a merged model), what truncation lost (None: nothing) and its agreement
# with the student.
Card = Callable[[int | None, float | None, Agreement], str]


class Exportable(Protocol):
    """A student, of a run or not."""

    @property
    def config(self) -> ModelConfig:
        """How its base is loaded."""
        ...

    @property
    def trait(self) -> Trait:
        """What it was trained on; its prompts and personas are what an export is compared on."""
        ...

    @property
    def model(self) -> LanguageModel: ...

    @property
    def accumulator(self) -> Accumulator: ...


@dataclass(frozen=True)
class Unrecorded:
    """A student that no run folder describes."""

    trait: Trait
    accumulator: Accumulator

    @property
    def model(self) -> LanguageModel:
        return self.accumulator.language_model

    @property
    def config(self) -> ModelConfig:
        return self.model.config
