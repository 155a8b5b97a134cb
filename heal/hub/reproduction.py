"""What is needed to make the same again: the recipe and the trait as files, the versions, and how to start."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from heal.config import DataConfig, ExportConfig, JudgeConfig, Recipe, RunConfig, TrackingConfig
from heal.hub.source import Source
from heal.markdown import fenced, inline_code
from heal.own import source as own
from heal.recipe import to_yaml
from heal.recipe_files import find_file
from heal.records import read_jsonl
from heal.trait import Trait, trait_yaml
from heal.versions import PACKAGES

RECIPE = "recipe.yaml"
HEADING = "## Reproduction"
_OWN_FILES = ("model.chat_template", "evaluation.vignettes")  # keys that may name a file of the user's own
_NO_FILES = (None, "none", "embedded")


@dataclass(frozen=True)
class Reproduction:
    """Files to start from, by name, and the card's section on them."""

    files: dict[str, bytes]
    section: str


def reproduction(source: Source) -> Reproduction:
    """That of a run: nothing in it names a place of this computer, or an account."""
    traits = _trait_files(source.trait)
    recipe = _public(source.recipe, source.base, ",".join(traits))
    files: dict[str, bytes] = {}
    for name in _OWN_FILES:
        section, last = name.split(".")
        value = getattr(getattr(recipe, section), last)
        if value not in _NO_FILES:
            path = find_file(name, value)
            files[path.name] = path.read_bytes()
            setattr(getattr(recipe, section), last, path.name)
    files[RECIPE] = to_yaml(recipe).encode()
    files |= {name: trait_yaml(trait, Path(name)).encode() for name, trait in traits.items()}
    elsewhere = [spec for name, spec in vars(recipe.data).items() if name != "filter" and spec]
    base = "" if source.base or source.recipe.model.name == "embedded" else " model.name=PATH/TO/BASE"
    lines = [
        HEADING,
        "",
        f"Recipe {inline_code(Path(source.recipe.recipe).stem)}, seed {source.recipe.run.seed}, {_versions(source)}. "
        f"In a folder with {' and '.join(f'`{name}`' for name in (RECIPE, *traits))} of this repository:",
        "",
        fenced(f"heal train recipe={RECIPE}{base}", "sh"),
        *(["", f"It takes data that is not here: {', '.join(map(inline_code, elsewhere))}."] if elsewhere else []),
        "",
        "On a CPU, the same versions give the same bits; elsewhere, the same up to rounding.",
    ]
    return Reproduction(files, "\n".join(lines))


def _trait_files(trait: Trait) -> dict[str, Trait]:
    """The traits of a run by the names of their files, in the order in which `trait=` names them."""
    return {f"trait-{part.name}.yaml": part for part in trait.parts} or {"trait.yaml": trait}


def _public(recipe: Recipe, base: str | None, trait: str) -> Recipe:
    """The recipe without what is the user's own: places, accounts, a judge's server, the name of the run."""
    model = recipe.model
    name = "embedded" if model.name == "embedded" else base or Path(model.name).name
    return replace(
        recipe,
        recipe=Path(recipe.recipe).stem,
        trait=trait,
        positive="",
        negative="",
        sign="1",  # the trait is the one that was trained, turned already
        run=replace(recipe.run, name=RunConfig().name, root=RunConfig().root),
        model=replace(model, name=name),
        data=_named(recipe.data),
        evaluation=replace(recipe.evaluation, judge=JudgeConfig()),
        export=ExportConfig(),
        tracking=TrackingConfig(),
    )


def _named(data: DataConfig) -> DataConfig:
    """The user's own data by the names of its files alone; its prompts are in the trait."""
    public = replace(data, generation="", heldout="")
    for item in fields(DataConfig):
        spec = getattr(public, item.name)
        if isinstance(spec, str) and spec:
            place = own.Source.parse(f"data.{item.name}", spec).place
            if Path(place).expanduser().exists():
                setattr(public, item.name, spec.replace(place, Path(place).name, 1))
    return public


def _versions(source: Source) -> str:
    """Those that the run was last continued with; of an early run, heal's alone."""
    events = source.folder.path / "events.jsonl"
    rows = [row for row in read_jsonl(events) if row.get("kind") == "versions"] if events.is_file() else []
    if not rows:
        return f"heal {source.folder.started().heal or 'of an early version'}"
    return ", ".join(f"{name} {rows[-1][name]}" for name in ("heal", *PACKAGES, "python") if name in rows[-1])
