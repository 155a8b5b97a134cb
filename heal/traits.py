"""The trait that a recipe trains: one, or several as one (docs/method.md, Several traits).

Of several, each keeps its personas, from which its own direction is extracted and by which its own answers are read;
prompts are dealt from them in turn, and completions are dropped that talk about any of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations, zip_longest
from pathlib import Path

from heal.config import DataConfig, Recipe
from heal.errors import UserError
from heal.own.texts import contrasts_from, prompts_from, said_from
from heal.recipe_files import RECIPES, available
from heal.trait import Trait, check_trait, load_trait, make_trait
from heal.yaml_text import Settings

AND = "-and-"  # between the names of several traits, in that of their sum
_PAIRWISE = ("vector", "pairs")  # keys of the recipe's `data` that are of one trait's direction


def trait_of(recipe: Recipe) -> Trait:
    """The trait that a recipe trains: its `trait`, or its `positive` and `negative`, turned by its `sign`.

    Its prompts are those of the recipe's `data` where there are any.

    Raises:
        UserError: see `load_trait`, `make_trait`, `joined` and `heal.own.texts`; `trait` names a file beside `positive`
            and `negative`; several traits with a direction of the user's own.
    """
    if recipe.positive or recipe.negative:
        if recipe.trait.endswith((".yaml", ".yml")) or recipe.trait in available(RECIPES / "traits"):
            raise UserError(
                f"trait={recipe.trait}: with positive= and negative= it is the name of a new trait, and this one "
                "has a file; choose another, or leave trait= out"
            )
        made = make_trait(recipe.positive, recipe.negative, recipe.trait, recipe.language)
        named = [(made, recipe.sign == "-1")]
    else:
        named = [(load_trait(name, recipe.language), turned) for name, turned in spelt(recipe.trait, recipe.sign)]
    if len(named) > 1 and (given := [key for key in _PAIRWISE if getattr(recipe.data, key)]):
        raise UserError(
            f"data.{given[0]} with trait={recipe.trait}: it is the direction of one trait, and each of several has its "
            "own; leave it out, or train one trait"
        )
    traits = [(_with_own(trait, recipe.data), turned) for trait, turned in named]
    return joined(recipe.trait, [trait.opposite() if turned else trait for trait, turned in traits])


def one_trait_of(recipe: Recipe, taker: str) -> Trait:
    """The same where `taker` ("heal check") can do with one trait only; UserError where there are several."""
    trait = trait_of(recipe)
    if trait.parts:
        raise UserError(f"trait={recipe.trait}: {taker} takes one trait at a time; heal train takes several")
    return trait


def spelt(text: str, sign: str = "1") -> list[tuple[str, bool]]:
    """The names in `trait=text`, which commas separate, each with whether its personas are swapped.

    They are after a `-` (`love,-curiosity`), and the other way round where `sign` is -1. A file of that name is one.
    """
    if Path(text).expanduser().is_file():
        return [(text, sign == "-1")]
    words = [word.strip() for word in text.split(",")]
    return [(word.removeprefix("-"), word.startswith("-") != (sign == "-1")) for word in words]


def joined(spec: str, traits: Sequence[Trait]) -> Trait:
    """Several traits as one; a single one is itself.

    Its personas are theirs, one after the other. A prompt that is held out of one of them is only evaluated on.

    Args:
        spec: how they were asked for, for messages.
        traits: those that are trained, each turned already.

    Raises:
        UserError: two of them are the same or opposites, have one name, or mean different things by the foundations.
    """
    if len(traits) == 1:
        return traits[0]
    for one, other in combinations(traits, 2):
        _refuse_clash(f"trait={spec}", one, other)
    heldout = alternately(trait.heldout_prompts for trait in traits)
    generation = alternately(trait.generation_prompts for trait in traits)
    first = next((trait for trait in traits if trait.foundation), traits[0])
    trait = Trait(
        name=AND.join(trait.name for trait in traits),
        description=" ".join(f"{trait.name}: {trait.description}" for trait in traits),
        positive="\n\n".join(trait.positive for trait in traits),
        negative="\n\n".join(trait.negative for trait in traits),
        generation_prompts=tuple(prompt for prompt in generation if prompt not in heldout),
        heldout_prompts=tuple(heldout),
        narration=tuple(dict.fromkeys(pattern for trait in traits for pattern in trait.narration)),
        foundation=first.foundation,
        intent=first.intent,
        contexts=traits[0].contexts,  # the user's own are the same for all of them
        neutral=traits[0].neutral,
        parts=tuple(traits),
    )
    check_trait(f"trait={spec}", trait)
    return trait


def alternately(piles: Iterable[Sequence[str]]) -> list[str]:
    """One of each pile in turn, as long as it has any; each text once."""
    dealt = (text for row in zip_longest(*piles) for text in row if text is not None)
    return list(dict.fromkeys(dealt))


def _refuse_clash(said: str, one: Trait, other: Trait) -> None:
    """UserError, which begins with `said`, where two traits cannot be trained together."""
    fault, personas = "", (one.positive, one.negative)
    meant = [(trait.foundation, trait.intent) for trait in (one, other)]
    if personas == (other.positive, other.negative):
        fault = f"{one.name} is there twice" if one.name == other.name else f"{one.name} and {other.name} are the same"
    elif personas == (other.negative, other.positive):
        fault = f"{one.name} and {other.name} are opposites, which cancel each other out"
    elif one.name == other.name:
        fault = f"two traits are called {one.name}; rename one in its file"
    elif all(foundation for foundation, _ in meant) and meant[0] != meant[1]:
        means = [f"{trait.name} means {trait.foundation} to weigh {_WEIGHS[trait.intent]}" for trait in (one, other)]
        fault = f"{' and '.join(means)}: scenes are held against one of these; take 'foundation' out of a file"
    if fault:
        raise UserError(f"{said}: {fault}")


_WEIGHS = {1: "more", -1: "less"}


def _with_own(trait: Trait, data: DataConfig) -> Trait:
    """The trait with the user's own texts, where there are any."""
    own: Settings = {}
    for field, key in (("generation_prompts", "generation"), ("heldout_prompts", "heldout"), ("contexts", "contexts")):
        if spec := getattr(data, key):
            own[field] = prompts_from(f"data.{key}", spec)
    if data.pairs:
        own["pairs"] = contrasts_from("data.pairs", data.pairs)
    if data.neutral:
        own["neutral"] = said_from("data.neutral", data.neutral)
    if not own:
        return trait
    trait = replace(trait, **own)
    said = [f"data.{key}={getattr(data, key)}" for key in ("generation", "heldout") if getattr(data, key)]
    check_trait(", ".join(said), trait)
    return trait
