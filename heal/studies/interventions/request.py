"""What the command line of a study of interventions asks for: which of them, with which signs, on which recipe."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from heal.choices import names
from heal.config import Recipe, key
from heal.errors import UserError, nearest
from heal.options import read_options, split_words
from heal.recipe import load_recipe
from heal.studies.interventions.prompts import NAMES

METHODS = names("heal.steering.methods")
KIND = "interventions"  # what the default name of a study's folder begins with

# Short words of the commands for keys of the recipe.
SHORT = {
    "model": "model.name",
    "seed": "run.seed",
    "target_kl": "calibration.target",
    "audit": "calibration.audit_prompts",
}

SHORT_HELP = ", ".join(f"{short} = {full}" for short, full in SHORT.items())


@dataclass
class Study:
    """What every study of interventions is asked."""

    method: str = key(
        "all",
        "interventions, separated by commas: names of heal/steering/methods (all: every one), saved vectors or weight "
        "differences (.safetensors), or run folders, whose student is dialled by its gate",
    )
    signs: Literal["both", "+", "-"] = key("both", "towards the positive persona, the negative one, or both")


@dataclass(frozen=True)
class Asked:
    """One intervention by its name in tables, and where it is saved (None: a method, which is fitted)."""

    name: str
    path: Path | None = None


Options = TypeVar("Options", bound=Study)


def read_study(schema: type[Options], words: Sequence[str]) -> tuple[Recipe, Options]:
    """The recipe and the command's own options; what is no option is a key of the recipe.

    The scenes of moral foundations are asked unless the words say otherwise.

    Raises:
        UserError: `steer.method`, which says nothing here; see also `split_words`, `load_recipe` and `read_options`.
    """
    own, others = split_words(schema, words, SHORT)
    options = read_options(schema, own)
    rest = []
    for word in others:
        name, equals, text = word.partition("=")
        if name == "steer.method":
            raise UserError(f"{word}: here it is method=... that names what is measured, as in method={text}")
        rest.append(f"{SHORT.get(name, name)}{equals}{text}")
    if not any(word.startswith("evaluation.vignettes=") for word in rest):
        rest.append("evaluation.vignettes=embedded")
    return load_recipe(rest), options


def interventions(text: str) -> list[Asked]:
    """The interventions that `method=text` names, in that order.

    Raises:
        UserError: no such method, file or folder, a file or folder that is called as a method or a prompt is, or two
            of one name.
    """
    if text == "all":
        return [Asked(name) for name in METHODS]
    chosen = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        if word in METHODS:
            chosen.append(Asked(word))
            continue
        path = Path(word).expanduser()
        if path.suffix == ".safetensors" and path.is_file():
            chosen.append(Asked(path.stem, path))
        elif (path / "recipe.yaml").is_file():
            chosen.append(Asked(path.resolve().name, path))
        else:
            raise UserError(
                f"method={word}: neither a steering method, nor a .safetensors file or a run folder that is there"
                f"{nearest(word, list(METHODS))}"
            )
    if not chosen:
        raise UserError("method=: names no intervention")
    taken = {folder_name(name) for name in (*METHODS, *NAMES)}
    for one in chosen:
        if one.path is not None and folder_name(one.name) in taken:
            raise UserError(f"method={one.path}: '{one.name}' is what a method or a prompt is called; rename it")
    folders = [folder_name(one.name) for one in chosen]
    if twice := [name for name in folders if folders.count(name) > 1]:
        raise UserError(f"method: two interventions are called '{twice[0]}'; rename a file or leave one out")
    return chosen


def folder_name(name: str) -> str:
    """What the folder of an intervention or a prompt is called."""
    return name.replace(" ", "_")


def signs(text: str) -> tuple[int, ...]:
    """`both`, `+` or `-` as numbers."""
    return {"both": (1, -1), "+": (1,), "-": (-1,)}[text]


def multiples(text: str) -> tuple[float, ...]:
    """The multiples of a dose that commas separate, each once, from small to large.

    Raises:
        UserError: no number, or one below 0.
    """
    try:
        alphas = sorted({float(part) for part in text.split(",")})
    except ValueError as error:
        raise UserError(f"alphas={text}: expected numbers, separated by commas") from error
    if not all(0 <= alpha < math.inf for alpha in alphas):
        raise UserError(f"alphas={text}: multiples of the dose must be at least 0; signs=- turns it round")
    return tuple(alphas)
