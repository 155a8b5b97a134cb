"""What a run holds while it goes on, and how a run on disk becomes a student again."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from heal.accumulator import Accumulator
from heal.config import Recipe
from heal.console import Console
from heal.errors import UserError
from heal.evaluation.neutral import NeutralTexts
from heal.evaluation.probe import Probe
from heal.evaluation.vignettes import Vignette
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model
from heal.randomness import derive_seed
from heal.run.folder import RunFolder
from heal.tracking.tracker import Tracker
from heal.trait import MIN_GENERATION_PROMPTS, MIN_HELDOUT_PROMPTS, Trait


@dataclass
class Student:
    """A run's model as it stands after its finished rounds, and what it came from."""

    recipe: Recipe
    trait: Trait
    folder: RunFolder
    model: LanguageModel
    accumulator: Accumulator
    rounds: list[int]


@dataclass
class Session:
    """One run in one process."""

    recipe: Recipe
    trait: Trait
    folder: RunFolder
    model: LanguageModel
    accumulator: Accumulator
    console: Console
    tracker: Tracker
    vignettes: tuple[Vignette, ...] = ()
    neutral_texts: NeutralTexts = field(init=False)  # set by the baseline, with the probe
    probe: Probe = field(init=False)

    def student(self, rounds: list[int]) -> Student:
        """The student as it stands now, with `rounds` folded into it; the folder may hold more."""
        return Student(self.recipe, self.trait, self.folder, self.model, self.accumulator, rounds)


def fitting(model: LanguageModel, recipe: Recipe, trait: Trait) -> tuple[Trait, int]:
    """The trait without the prompts that do not fit the model's context, and how many those are.

    A prompt must fit under the longest of the personas and the neutral system prompt, with the
    longest answer behind it.

    Raises:
        UserError: too few are left.
    """
    budget = model.context - max(recipe.generation.tokens, recipe.evaluation.tokens, recipe.calibration.tokens)
    systems = (recipe.model.system, trait.positive, trait.negative)

    def fits(prompt: str) -> bool:
        return max(len(model.chat.ids(system, prompt)) for system in systems) <= budget

    kept = replace(
        trait,
        generation_prompts=tuple(filter(fits, trait.generation_prompts)),
        heldout_prompts=tuple(filter(fits, trait.heldout_prompts)),
    )
    left_out = len(trait.generation_prompts) - len(kept.generation_prompts)
    left_out += len(trait.heldout_prompts) - len(kept.heldout_prompts)
    if len(kept.generation_prompts) < MIN_GENERATION_PROMPTS or len(kept.heldout_prompts) < MIN_HELDOUT_PROMPTS:
        raise UserError(
            f"trait={trait.name}: {left_out} of its prompts do not fit the context of {model.name} "
            f"({model.context} tokens) with their answers; too few are left"
        )
    return kept, left_out


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
    """Folds finished rounds from disk, in order."""
    for index in rounds:
        accumulator.start_round(lora_seed(recipe, index))
        accumulator.load_current(folder.round(index) / "adapter")
        accumulator.fold()


def lora_seed(recipe: Recipe, round_index: int) -> int:
    """The seed of a round's fresh LoRA."""
    return derive_seed(recipe.run.seed, round_index, "lora")


def rounds_up_to(folder: RunFolder, last_round: int | None = None) -> list[int]:
    """The finished rounds of a run up to `last_round`, counted from 0; None: all of them.

    Raises:
        UserError: no run, no finished round, or not that round.
    """
    folder.recipe()
    finished = folder.rounds()
    if not finished:
        raise UserError(f"{folder.path}: no finished round yet; start the run again to continue it")
    if last_round is not None and last_round not in finished:
        raise UserError(f"round={last_round}: finished rounds of {folder.path} are 0 to {finished[-1]}")
    return finished[: (finished[-1] if last_round is None else last_round) + 1]


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
    recipe = folder.recipe()
    rounds = rounds_up_to(folder, last_round)
    model = load_language_model(recipe.model, getattr(torch, folder.facts()["dtype"]), device)
    accumulator = build_accumulator(model, recipe)
    replay(accumulator, folder, recipe, rounds if fold_last else rounds[:-1])
    if not fold_last:
        accumulator.start_round(lora_seed(recipe, rounds[-1]))
        accumulator.load_current(folder.round(rounds[-1]) / "adapter")
    return Student(recipe, Trait.from_json(folder.facts()["trait"]), folder, model, accumulator, rounds)
