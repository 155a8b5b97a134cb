"""Where what is pushed comes from: a run, or the folder of an export; and what a hub calls its base."""

from dataclasses import dataclass
from pathlib import Path

from heal.config import ModelConfig, Recipe
from heal.errors import UserError
from heal.hub.rules import id_fault
from heal.run.folder import RunFolder
from heal.trait import Trait

EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_LICENSE = "apache-2.0"
NONE = "none"  # base=none: the base is on no hub


@dataclass(frozen=True)
class Source:
    """A run that something is pushed of.

    Attributes:
        folder: of the run.
        recipe, trait: of the run.
        base: what the hub calls the run's base; None: it is on no hub.
        round: `round=` as it was typed.
        export: the folder of an export, where one is named; None: the run's own.
    """

    folder: RunFolder
    recipe: Recipe
    trait: Trait
    base: str | None
    round: str | None = None
    export: Path | None = None

    @staticmethod
    def of(run: Path, base: str | None, round: str | None = None, export: Path | None = None) -> "Source":
        """Reads the run's recipe and trait; UserError where there is no run, or its base has no name on a hub."""
        folder = RunFolder(run)
        recipe = folder.recipe()
        return Source(folder, recipe, folder.started().trait, hub_base(recipe.model, base), round, export)


def hub_base(config: ModelConfig, given: str | None) -> str | None:
    """What a hub calls a run's base: `base=`, or what it was loaded from; None: it is on no hub (`base=none`).

    Raises:
        UserError: it was loaded from a folder, and nobody says what it is called; or `given` is no such name.
    """
    if given is not None:
        return None if given == NONE else checked_base(given)
    if config.name == "embedded":
        return EMBEDDED
    if config.folder is not None:
        raise UserError(
            f"the run's base is the folder {config.name}: say what the hub calls it with base=user/name, or base=none "
            "if it is not there"
        )
    return config.name


def checked_base(name: str) -> str:
    """`name` itself; UserError where it cannot be the id of a repository."""
    if fault := id_fault(name):
        raise UserError(f"base={name}: {fault}")
    return name
