"""What is needed to make the same again: the recipe and the trait as files, the versions, and how to start."""

from dataclasses import dataclass, replace
from pathlib import Path

from heal.config import ExportConfig, Recipe, RunConfig, TrackingConfig
from heal.export.markdown import fenced, inline_code
from heal.hub.source import Source
from heal.recipe import find_file, to_yaml
from heal.records import read_jsonl
from heal.trait import trait_yaml
from heal.versions import PACKAGES

RECIPE, TRAIT = "recipe.yaml", "trait.yaml"
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
    recipe = _public(source.recipe, source.base)
    files: dict[str, bytes] = {}
    for name in _OWN_FILES:
        section, last = name.split(".")
        value = getattr(getattr(recipe, section), last)
        if value not in _NO_FILES:
            path = find_file(name, value)
            files[path.name] = path.read_bytes()
            setattr(getattr(recipe, section), last, path.name)
    files[RECIPE] = to_yaml(recipe).encode()
    files[TRAIT] = trait_yaml(source.trait, Path(TRAIT)).encode()
    base = "" if source.base or source.recipe.model.name == "embedded" else " model.name=PATH/TO/BASE"
    lines = [
        HEADING,
        "",
        f"Recipe {inline_code(Path(source.recipe.recipe).stem)}, seed {source.recipe.run.seed}, {_versions(source)}. "
        f"In a folder with `{RECIPE}` and `{TRAIT}` of this repository:",
        "",
        fenced(f"heal train recipe={RECIPE}{base}", "sh"),
        "",
        "On a CPU, the same versions give the same bits; elsewhere, the same up to rounding.",
    ]
    return Reproduction(files, "\n".join(lines))


def _public(recipe: Recipe, base: str | None) -> Recipe:
    """The recipe without what is the user's own: places, accounts, the name of the run."""
    model = recipe.model
    name = "embedded" if model.name == "embedded" else base or Path(model.name).name
    return replace(
        recipe,
        recipe=Path(recipe.recipe).stem,
        trait=TRAIT,
        positive="",
        negative="",
        sign="1",  # the trait is the one that was trained, turned already
        run=replace(recipe.run, name=RunConfig().name, root=RunConfig().root),
        model=replace(model, name=name),
        evaluation=replace(recipe.evaluation),
        export=ExportConfig(),
        tracking=TrackingConfig(),
    )


def _versions(source: Source) -> str:
    """Those that the run was last continued with; of an early run, heal's alone."""
    events = source.folder.path / "events.jsonl"
    rows = [row for row in read_jsonl(events) if row.get("kind") == "versions"] if events.is_file() else []
    if not rows:
        return f"heal {source.folder.started().heal or 'of an early version'}"
    return ", ".join(f"{name} {rows[-1][name]}" for name in ("heal", *PACKAGES, "python") if name in rows[-1])
