"""The rounds of a run, without the report: the same on the device and in the process of a test."""

from pathlib import Path

from heal.recipe import load_recipe
from heal.run.open import opened
from heal.run.session import Session
from tests import running, tiny

SIZES = ("compute.decode_batch=96", "compute.batch_tokens=4096")  # measuring them takes longer than such a run
LEARNING = ("heal.barrier.tau=0.01", "heal.learning_rate=0.01")  # so fast that the barrier is on


def run(architecture: str, root: Path, name: str, *more: str) -> Session:
    """The smoke recipe's two rounds on a tiny model of an architecture, below `root`; the session as they left it."""
    from heal.loop import run_loop

    model = tiny.save(architecture, root / architecture)
    words = running.words(model, root, f"run.name={name}", *SIZES, *LEARNING, *more)
    with opened(load_recipe(words)) as session:
        run_loop(session)
    return session
