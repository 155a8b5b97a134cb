"""Trains a trait into a language model: steer, distil, heal, fold, round after round."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from heal.guard import CONTINUES, command
from heal.keys import help_text
from heal.recipe import load_recipe
from heal.run.open import opened

if TYPE_CHECKING:
    from heal.run.session import Session


def main(words: Sequence[str]) -> None:
    """`heal train` and heal/train.py."""
    command(words, help_text, train, CONTINUES, several=True)


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
        rounds = run_loop(session)
        new = sum(metrics.round - 1 not in before for metrics in rounds)
        deliver(session, rounds, new, time.perf_counter() - start)
    except BaseException:
        session.tracker.finish({"state": "stopped"})
        raise
