"""What a run holds while it goes on."""

from collections.abc import Callable
from dataclasses import dataclass

from heal.accumulator import Accumulator
from heal.config import Recipe
from heal.console import Console
from heal.evaluation.vignettes import Vignette
from heal.healing.log import StepLog
from heal.models.language_model import LanguageModel
from heal.run.folder import RunFolder
from heal.run.step import Runner
from heal.run.student import Student
from heal.tracking.tracker import Tracker
from heal.trait import Trait


@dataclass(frozen=True)
class Session:
    """One run in one process.

    Attributes:
        run: runs a step in a folder of the run, or reads what it left: `session.run(step, at)`.
    """

    recipe: Recipe
    trait: Trait
    folder: RunFolder
    model: LanguageModel
    accumulator: Accumulator
    console: Console
    tracker: Tracker
    vignettes: tuple[Vignette, ...] = ()

    @property
    def run(self) -> Runner:
        return Runner(self.folder, self.console, self.tracker)

    def log_of(self, number: int) -> Callable[[StepLog], None]:
        """Where the optimiser steps of a round (counted from 1) are logged as they are made."""
        return lambda log: self.tracker.step_log(number, self.recipe.heal.epochs, log)

    def student(self, rounds: list[int], among: list[int] | None = None) -> Student:
        """The student as it stands now, with `rounds` folded into it; see `Student`."""
        return Student(self.recipe, self.trait, self.folder, self.model, self.accumulator, rounds, among)
