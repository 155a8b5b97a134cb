"""The loop from a command line: `heal train recipe=kl_rev_rmse`."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from heal.guard import CONTINUES, command
from heal.recipe import help_text, load_recipe
from heal.run.open import opened

if TYPE_CHECKING:
    from heal.run.session import Session


def main(words: Sequence[str]) -> None:
    """The command line of heal/train.py; exits 0 done, 1 failed, 2 a mistake in the words, 130 stopped."""
    command(words, help_text, lambda: train(words), CONTINUES)


def train(words: Sequence[str]) -> None:
    """Runs or continues the run that `words` describe."""
    with opened(load_recipe(words)) as session:
        run(session)


def run(session: "Session") -> None:
    """The loop, then its report and its adapter; the last lines say where they are."""
    from heal.loop import run_loop
    from heal.outcome import deliver

    start = time.perf_counter()
    try:
        before = session.folder.rounds()
        metrics = run_loop(session)
        new = sum(entry.round - 1 not in before for entry in metrics)
        deliver(session, metrics, new, time.perf_counter() - start)
    except BaseException:
        session.tracker.finish({"state": "stopped"})
        raise
