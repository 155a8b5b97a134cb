"""Writes a run's completions and outputs as a dataset with its card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from heal.config import key
from heal.guard import command
from heal.options import options_help, output_path, read_options
from heal.run.folder import RunFolder

USAGE = "heal dataset run=FOLDER [out=FOLDER]"
PURPOSE = """Writes the completions of every round (kept and dropped) and the answers of every stage as JSON lines with
a dataset card, as datasets.load_dataset reads them; no model is loaded. heal push what=dataset sends the same."""


@dataclass
class Options:
    run: str = key("", "a run folder, as in runs/kl_rev_rmse-love-embedded-s0")
    out: str | None = key(None, "folder to write; none: export/dataset below the run")


def main(words: Sequence[str]) -> None:
    """`heal dataset`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), dataset)


def dataset(words: Sequence[str]) -> None:
    """Writes the dataset and prints its files."""
    options = read_options(Options, words)
    folder = RunFolder(Path(options.run).expanduser())
    from heal.export.dataset import dataset_files, default_place
    from heal.run.files import write_files

    out = output_path(options.out or str(default_place(folder)), folder=True)
    print(write_files(out, dataset_files(folder)))
