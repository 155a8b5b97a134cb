"""Trains towards a trait and away from it; the difference of the weights is an intervention."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from heal.config import Recipe, key
from heal.console import Console
from heal.counts import lowered_to, refuse_missing_prompts
from heal.errors import UserError
from heal.guard import command
from heal.options import options_help, output_path, read_options, split_words
from heal.parallel import by_first
from heal.recipe import load_recipe, sized
from heal.run.open import default_name, open_model
from heal.trait import Trait
from heal.traits import one_trait_of

USAGE = "heal weight-difference [trait=...] [model.name=...] [adapter=KIND] [out=FILE] [key=value ...]"
PURPOSE = """Samples answers under both of a trait's personas, trains one adapter on each set without the persona, and
writes the difference of the two models' weights to a .safetensors file: an intervention, as a steering vector is one
(contrastive weight steering, arXiv 2511.05408). The base is left as it is. Other keys are those of heal train: of
its sections run.seed, model, generation, filter, heal and compute matter. An adapter other than lora may need a
heal.learning_rate of its own."""


@dataclass
class Options:
    adapter: Literal["lora", "pissa", "dora", "delora", "oft", "ia3"] = key("lora", "kind of the two adapters")
    samples: int = key(4, "answers to each of generation.prompts prompts under each persona", 1)
    out: str | None = key(None, "file to write; none: weight_difference-ADAPTER-TRAIT-MODEL-sSEED.safetensors")


def main(words: Sequence[str]) -> None:
    """`heal weight-difference`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), weight_difference, several=True)


def weight_difference(words: Sequence[str]) -> None:
    """Samples, trains, writes the difference and prints where it is."""
    own, others = split_words(Options, words)
    options, recipe = read_options(Options, own), sized(load_recipe(others))
    asked = one_trait_of(recipe, "heal weight-difference")
    path = difference_path(options, recipe, asked)
    console = Console()
    for said in lowered_to(asked, recipe, ["generation.prompts"]):
        console.say(f"prompts    {said}")
    refuse_missing_prompts(recipe, asked, ["generation.prompts"])
    model, trait, _ = open_model(recipe, console)
    from heal.run.files import write_atomic
    from heal.studies.weight_difference.answers import contrasting_answers
    from heal.studies.weight_difference.train import train_contrast

    with console.step("answers") as line:
        contrast = contrasting_answers(model, trait, recipe, options.samples, line.progress)
        line.result(
            f"kept {contrast.kept_positive} of {contrast.made} as {trait.name}, {contrast.kept_negative} of "
            f"{contrast.made} as its opposite; {len(contrast.positive)} of each trained on"
        )
    with console.step("train") as line:
        trained = train_contrast(model, trait, recipe, contrast, options.adapter, line.progress)
        line.result(
            f"two {options.adapter} adapters, {recipe.heal.epochs} epochs; loss {trained.loss_positive:.3f} "
            f"as {trait.name}, {trained.loss_negative:.3f} as its opposite, nats per token in the last epoch"
        )
    content = trained.difference.to_bytes()
    by_first(lambda: write_atomic(path, content))
    linears = len(trained.difference.updates)
    console.say(f"difference Frobenius norm {trained.difference.norm:.4g} over {linears} Linears")
    console.say(f"written    {path} ({len(content) / 1e6:.1f} MB)")


def difference_path(options: Options, recipe: Recipe, trait: Trait) -> Path:
    """The file to write; UserError where it cannot be written or `method=` would not know it by its name."""
    default = default_name(recipe, trait, f"weight_difference-{options.adapter}") + ".safetensors"
    path = output_path(options.out or default, folder=False)
    if path.suffix != ".safetensors":
        raise UserError(f"out={options.out}: the file's name must end in .safetensors, by which method= knows it")
    return path
