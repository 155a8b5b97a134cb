"""Trains a trait into a language model: steer, distil, heal, fold, round after round."""

from collections.abc import Sequence

from heal.app import opened, run
from heal.guard import CONTINUES, command
from heal.recipe import help_text, load_recipe


def main(words: Sequence[str]) -> None:
    """`heal train` and heal/train.py."""
    command(words, help_text, train, CONTINUES)


def train(words: Sequence[str]) -> None:
    """Runs or continues the run that `words` describe."""
    with opened(load_recipe(words)) as session:
        run(session)
