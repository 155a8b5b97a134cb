"""The report of a run again, from disk alone: `python scripts/report.py run=runs/x`."""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from heal.config import key  # noqa: E402
from heal.guard import command  # noqa: E402
from heal.options import options_help, read_options  # noqa: E402
from heal.recipe import main_words  # noqa: E402
from heal.run.folder import RunFolder  # noqa: E402

USAGE = "python scripts/report.py run=FOLDER"
PURPOSE = """Writes FOLDER/report/index.html and its figures from the rounds that are finished, and prints the page's
path. Nothing is computed again and no model is loaded."""


@dataclass
class Options:
    run: str = key("", "a run folder, as in runs/kl_rev_rmse-love-embedded-s0")


def main() -> None:
    """Reads the words, builds the report, says where it is."""
    from heal.report.build import build_report

    options = read_options(Options, main_words())
    print(build_report(RunFolder(Path(options.run).expanduser())))


if __name__ == "__main__":
    command(main_words(), lambda: options_help(Options, USAGE, PURPOSE), main)
