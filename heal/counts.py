"""How many prompts a recipe asks for, held against how many its trait has."""

from collections.abc import Sequence

from heal.config import Recipe
from heal.console import counted
from heal.errors import UserError
from heal.recipe import keys_by_name
from heal.trait import Trait

# Keys that count a trait's prompts, and those of them that a study of interventions draws on.
COUNTS = ("generation.prompts", "calibration.prompts", "evaluation.prompts")
STUDY_COUNTS = COUNTS[1:]


def refuse_missing_prompts(recipe: Recipe, trait: Trait, names: Sequence[str] = COUNTS) -> None:
    """UserError where a key of `names` asks for more prompts than `trait` has; says how many there are."""
    skip = recipe.evaluation.skip
    for name in names:
        section, _, field = name.partition(".")
        asked, held_out = getattr(getattr(recipe, section), field), section == "evaluation"
        refuse_more_than(name, asked, trait, held_out, skip if held_out else 0)


def refuse_more_than(name: str, asked: int, trait: Trait, held_out: bool, skip: int = 0) -> None:
    """UserError where `name=asked` is more than the trait's generation or held-out prompts, without `skip` of them."""
    prompts = trait.heldout_prompts if held_out else trait.generation_prompts
    there = max(0, len(prompts) - skip)
    if asked > there:
        kind = "held-out prompt" if held_out else "generation prompt"
        left = f" after evaluation.skip={skip}" if skip else ""
        raise UserError(
            f"{name}={asked}: {trait.name} has {counted(there, kind)}{left}; ask for at most so many, or add some to "
            "the trait's file"
        )


def refuse_missing_scenes(recipe: Recipe, scenes: int) -> None:
    """UserError where `evaluation.vignette_count` was set to more scenes than the file has (its default: at most)."""
    name = "evaluation.vignette_count"
    asked = recipe.evaluation.vignette_count
    if recipe.evaluation.vignettes != "none" and scenes < asked != keys_by_name()[name].default:
        raise UserError(f"{name}={asked}: {recipe.evaluation.vignettes} has {counted(scenes, 'scene')}")
