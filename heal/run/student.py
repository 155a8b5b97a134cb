"""How a run on disk becomes a student again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from heal.accumulator import Accumulator
from heal.config import ModelConfig, Recipe
from heal.errors import UserError
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model
from heal.randomness import derive_seed
from heal.run.folder import RunFolder
from heal.steps import merge
from heal.trait import Trait


@dataclass(frozen=True)
class Student:
    """A run's model as it stands after its finished rounds (counted from 0), and what it came from.

    Attributes:
        rounds: those that are in it.
        among: the finished rounds among which the last of them was chosen; None: all that the folder holds.
    """

    recipe: Recipe
    trait: Trait
    folder: RunFolder
    model: LanguageModel
    accumulator: Accumulator
    rounds: list[int]
    among: list[int] | None = None

    @property
    def config(self) -> ModelConfig:
        """How its base is loaded."""
        return self.recipe.model


def build_accumulator(model: LanguageModel, recipe: Recipe) -> Accumulator:
    """An accumulator with an empty history, as the recipe's heal section says."""
    heal = recipe.heal
    return Accumulator(
        model,
        heal.rank,
        heal.alpha,
        model.band(heal.band),
        kind=heal.init,
        merge=recipe.compute.merge_history,
    )


def replay(accumulator: Accumulator, folder: RunFolder, recipe: Recipe, rounds: Sequence[int]) -> None:
    """Folds finished rounds from disk, in order; the student computes with merged weights where it did in the run."""
    for index in rounds:
        put_round(accumulator, folder, recipe, index)
        accumulator.fold()
    if rounds and accumulator.rounds_merged and (folder.round(rounds[-1]) / merge.FILE).is_file():
        accumulator.merge(merge.Merged.load(folder.round(rounds[-1])).taken)


def put_round(accumulator: Accumulator, folder: RunFolder, recipe: Recipe, index: int) -> None:
    """Puts the LoRA of a finished round into `current`."""
    accumulator.start_round(lora_seed(recipe, index))
    accumulator.load_current(folder.round(index) / "adapter")


def lora_seed(recipe: Recipe, round_index: int) -> int:
    """The seed of a round's fresh LoRA."""
    return derive_seed(recipe.run.seed, round_index, "lora")


def rounds_up_to(folder: RunFolder, last_round: int | None = None) -> list[int]:
    """The finished rounds of a run up to `last_round`, counted from 0; None: all of them.

    Raises:
        UserError: no run, no finished round, or not that round; a file of theirs is damaged.
    """
    folder.recipe()
    finished = folder.readable(last_round)
    if not finished:
        raise UserError(f"{folder.path}: no finished round yet; start the run again to continue it")
    if last_round is not None and last_round not in finished:
        raise UserError(f"round={last_round + 1}: the finished rounds of {folder.path} are 1 to {len(finished)}")
    return finished


def load_student(
    folder: RunFolder, device: torch.device, last_round: int | None = None, fold_last: bool = True
) -> Student:
    """The student after `last_round` (default: the last finished one), rebuilt from the run folder alone.

    Args:
        folder: the run.
        device: where to put it.
        last_round: counted from 0.
        fold_last: False leaves the last round's LoRA in `current`, so that the accumulator's `previous()`
            is the model that this round steered and its `student()` what came out of it.

    Raises:
        UserError: no run, no finished round, or not that round.
    """
    recipe, facts = folder.recipe(), folder.started()
    rounds = rounds_up_to(folder, last_round)
    model = load_language_model(recipe.model, getattr(torch, facts.dtype), device)
    accumulator = build_accumulator(model, recipe)
    replay(accumulator, folder, recipe, rounds if fold_last else rounds[:-1])
    if not fold_last:
        put_round(accumulator, folder, recipe, rounds[-1])
    return Student(recipe, facts.trait, folder, model, accumulator, rounds)
