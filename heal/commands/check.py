"""Says in a minute or two whether a run is worth starting, and what to change if not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from heal.choices import names
from heal.config import SteerConfig, key
from heal.console import Console
from heal.counts import lowered_to, refuse_missing_prompts, refuse_more_than
from heal.environment import quiet_libraries
from heal.errors import RoundError, UserError, nearest
from heal.guard import command
from heal.options import options_help, output_path, read_options, split_words
from heal.recipe import load_recipe, sized
from heal.run.open import default_name, open_model
from heal.traits import one_trait_of

USAGE = "heal check [model.name=...] [trait=...] [recipe=...] [bands=0.3,0.5,0.7] [methods=a,b] [key=value ...]"
PURPOSE = """Measures on the base, with little of everything, what decides whether a run can work: can the trait be read
(does the model take on the personas), can it be steered (shift of the trait per nat, by method and depth), do answers
end within the token budget, and what will a round cost in time and memory. Prints one line for each thing that is
amiss, with what to change, and writes check.json and check.png to FOLDER (out=). Exit status: 0 worth starting, 1
something makes a run pointless, 2 bad input. Other keys are those of heal train, and mean what they mean there."""

METHODS = names("heal.steering.methods")


@dataclass
class Options:
    out: str | None = key(None, "folder that is written; default: checks/<the name that the run would have>")
    bands: str = key(
        "0.3,0.5,0.7,0.85",
        "centres of the bands that are tried beside the recipe's, fractions of the depth; as wide as steer.band",
    )
    methods: str | None = key(
        None, "steering methods that are tried beside the recipe's, separated by commas; all: every one"
    )
    pairs: int = key(16, "persona pairs of the extraction", 2, 288)
    prompts: int = key(4, "generation prompts on which a dose is found", 1)
    tokens: int = key(12, "greedy tokens decoded per prompt of a dose", 1)
    answers: int = key(8, "other generation prompts that are answered at the dose", 2)


def main(words: Sequence[str]) -> None:
    """`heal check`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), check)


def check(words: Sequence[str]) -> None:
    """Measures, prints what was found and what is amiss, and writes both; RoundError where a run is pointless."""
    from heal.places.place import METHOD

    own, others = split_words(Options, words)
    options, recipe = read_options(Options, own), sized(load_recipe(others))
    plan_words = methods(options.methods, recipe.steer.method or METHOD), bands(options.bands, recipe.steer)
    trait = one_trait_of(recipe, "heal check")
    lowered = lowered_to(trait, recipe)
    refuse_missing_prompts(recipe, trait)
    refuse_more_than("prompts + answers", options.prompts + options.answers, trait, held_out=False)
    name = recipe.run.name or default_name(recipe, trait)
    out = output_path(options.out or str(Path("checks") / name), folder=True)
    console = Console()
    for line in lowered:
        console.say(f"prompts    {line}")
    console.say("loading the libraries ...")
    quiet_libraries(downloads=recipe.model.name != "embedded")
    from heal.places.trial import Plan
    from heal.run.files import write_files
    from heal.steering.settings import check_settings
    from heal.studies.check.measure import check as measure
    from heal.studies.check.show import FIGURE, figure, lines

    check_settings(replace(recipe.steer, pairs=options.pairs), plan_words[0])
    model, trait, _ = open_model(recipe, console)
    plan = Plan(*plan_words, options.pairs, options.prompts, options.tokens, options.answers)
    found = measure(recipe, model, trait, plan, console)
    console.title("found")
    for line in lines(found):
        console.say(f"  {line}")
    for remark in found.remarks:
        console.say(f"  change     {remark.text}")
    console.say(write_files(out, found.files() | {FIGURE: figure(found)}))
    if found.pointless:
        raise RoundError(f"not worth starting: {'; '.join(found.pointless)}", again=False)
    console.say("worth starting")


def methods(text: str | None, own: str) -> tuple[str, ...]:
    """The methods that `methods=text` names, after the recipe's own.

    Raises:
        UserError: no such method.
    """
    if text == "all":
        return tuple(dict.fromkeys((own, *METHODS)))
    named = [part.strip() for part in (text or "").split(",") if part.strip()]
    for name in named:
        if name not in METHODS:
            raise UserError(f"methods={text}: '{name}' is no steering method{nearest(name, list(METHODS))}")
    return tuple(dict.fromkeys((own, *named)))


def bands(text: str, steer: SteerConfig) -> tuple[tuple[float, float], ...]:
    """The bands around the centres that `bands=text` names, as wide as the recipe's own, which comes first.

    Raises:
        UserError: no number, or one that is no fraction of the depth.
    """
    from heal.places.place import BAND, bands_around

    try:
        centres = [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"bands={text}: expected numbers, separated by commas") from error
    if not all(0 <= centre <= 1 for centre in centres):
        raise UserError(f"bands={text}: the centre of a band is a fraction of the depth, from 0 to 1")
    return bands_around(centres, steer.band or BAND)
