"""How many prompts a recipe asks for, held against how many its trait has."""

import math
from collections.abc import Sequence

from heal.config import Recipe
from heal.console import counted
from heal.errors import UserError
from heal.keys import keys_by_name
from heal.trait import Trait

# Keys that count a trait's texts, and those of them that a study of interventions draws on.
COUNTS = (
    "generation.prompts",
    "calibration.prompts",
    "evaluation.prompts",
    "steer.pairs",
    "evaluation.neutral_texts",
)
STUDY_COUNTS = COUNTS[1:]


def lowered_to(trait: Trait, recipe: Recipe, names: Sequence[str] = COUNTS) -> list[str]:
    """Lowers those of the keys `names` that the recipe's scale has set to what `trait` has; a line for each.

    The least that the key takes remains, and is refused by `refuse_missing_prompts`.
    """
    lowered = []
    for name in names:
        section, _, field = name.partition(".")
        settings, (there, _) = getattr(recipe, section), _there(recipe, trait, name)
        least = int(keys_by_name()[name].minimum or 1)
        if name in recipe.by_scale and least <= there < getattr(settings, field):
            lowered.append(f"{name}={there:.0f}, all that {trait.name} has (at this scale: {getattr(settings, field)})")
            setattr(settings, field, int(there))
    return lowered


def _there(recipe: Recipe, trait: Trait, name: str) -> tuple[float, str]:
    """How many texts the trait has for a key, and what one is called; no end of what heal has of its own."""
    prompts = len(trait.generation_prompts), "generation prompt"
    return {
        "generation.prompts": prompts,
        "calibration.prompts": prompts,
        "evaluation.prompts": (max(0, len(trait.heldout_prompts) - recipe.evaluation.skip), "held-out prompt"),
        "steer.pairs": (len(trait.pairs or trait.contexts) or math.inf, "pair" if trait.pairs else "context"),
        "evaluation.neutral_texts": (len(trait.neutral) or math.inf, "neutral text"),
    }[name]


def refuse_missing_prompts(recipe: Recipe, trait: Trait, names: Sequence[str] = COUNTS) -> None:
    """UserError where a key of `names` asks for more texts than `trait` has; says how many there are."""
    for name in names:
        section, _, field = name.partition(".")
        there, noun = _there(recipe, trait, name)
        skip = recipe.evaluation.skip if name == "evaluation.prompts" else 0
        _refuse(name, getattr(getattr(recipe, section), field), trait, there, noun, skip)


def refuse_more_than(name: str, asked: int, trait: Trait, held_out: bool) -> None:
    """UserError where `name=asked` is more than the trait's generation or held-out prompts."""
    if held_out:
        _refuse(name, asked, trait, len(trait.heldout_prompts), "held-out prompt")
    else:
        _refuse(name, asked, trait, len(trait.generation_prompts), "generation prompt")


def _refuse(name: str, asked: int, trait: Trait, there: float, noun: str, skip: int = 0) -> None:
    if asked > there:
        left = f" after evaluation.skip={skip}" if skip else ""
        raise UserError(
            f"{name}={asked}: {trait.name} has {counted(int(there), noun)}{left}; ask for at most so many, or add some "
            "to the trait's file"
        )


def refuse_missing_scenes(recipe: Recipe, scenes: int) -> None:
    """UserError where `evaluation.vignette_count` was set to more scenes than the file has (its default: at most)."""
    name = "evaluation.vignette_count"
    asked = recipe.evaluation.vignette_count
    if recipe.evaluation.vignettes != "none" and scenes < asked != keys_by_name()[name].default:
        raise UserError(f"{name}={asked}: {recipe.evaluation.vignettes} has {counted(scenes, 'scene')}")
