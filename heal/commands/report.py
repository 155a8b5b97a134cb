"""Builds the report of a run again, from its folder alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from heal.config import key
from heal.guard import command
from heal.options import options_help, read_options
from heal.run.folder import RunFolder

USAGE = "heal report run=FOLDER"
PURPOSE = """Writes FOLDER/report/index.html and its figures from the rounds that are finished, and prints the page's
path. Nothing is computed again and no model is loaded."""


@dataclass
class Options:
    run: str = key("", "a run folder, as in runs/kl_rev_rmse-love-embedded-s0")


def main(words: Sequence[str]) -> None:
    """`heal report`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), report)


def report(words: Sequence[str]) -> None:
    """Builds the report and prints where it is."""
    options = read_options(Options, words)
    from heal.report.build import build_report

    print(build_report(RunFolder(Path(options.run).expanduser())))
