"""A trait's prompts in an order that depends on what they are for alone; of several traits, one of each in turn."""

from typing import Literal

from heal.randomness import shuffled
from heal.trait import Trait
from heal.traits import alternately


def drawn(trait: Trait, kind: Literal["generation_prompts", "heldout_prompts"], *parts: int | str) -> list[str]:
    """All prompts of a kind, shuffled by `parts`; those of several traits are shuffled apart and dealt in turn."""
    prompts: tuple[str, ...] = getattr(trait, kind)
    if not trait.parts:
        return shuffled(list(prompts), *parts)
    piles = ([prompt for prompt in prompts if prompt in getattr(part, kind)] for part in trait.parts)
    return alternately(shuffled(pile, *parts) for pile in piles)
