"""The rounds of a run, without the report: the same on the device and in the process of a test."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from heal.config import Recipe
from heal.recipe import load_recipe
from heal.run.open import opened
from heal.run.session import Session
from tests import running, tiny
from tests.families import FAMILIES

SIZES = ("compute.decode_batch=96", "compute.batch_tokens=4096")  # measuring them takes longer than such a run
LEARNING = ("heal.barrier.tau=0.01", "heal.learning_rate=0.01")  # so fast that the barrier is on


def recipe(architecture: str, root: Path, name: str, *more: str) -> Recipe:
    """The smoke recipe for a tiny model of an architecture, or of a family, below `root`."""
    model = root / architecture
    if architecture in tiny.ARCHITECTURES:
        tiny.save(architecture, model)
    else:
        FAMILIES[architecture].save(model)
    return load_recipe(running.words(model, root, f"run.name={name}", *SIZES, *LEARNING, *more))


def run(
    architecture: str, root: Path, name: str, *more: str, limit: AbstractContextManager[None] | None = None
) -> Session:
    """The smoke recipe's two rounds; the session as they left it.

    Args:
        architecture, root, name, more: see `recipe`.
        limit: entered when the run has opened, for instance to take memory away that it foresaw.
    """
    from heal.loop import run_loop

    with opened(recipe(architecture, root, name, *more)) as session, limit or nullcontext():
        run_loop(session)
    return session
