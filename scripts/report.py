"""The report of a run again, from disk alone: `python scripts/report.py run=runs/x`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from heal.app import guarded  # noqa: E402
from heal.errors import UserError  # noqa: E402
from heal.recipe import main_words, parse_words, wants_help  # noqa: E402
from heal.report.build import build_report  # noqa: E402
from heal.runfolder import RunFolder  # noqa: E402

HELP = """usage: python scripts/report.py run=FOLDER

Writes FOLDER/report/index.html and its figures from the rounds that are finished, and prints the
page's path. Nothing is computed again and no model is loaded.

  run=FOLDER   a run folder, as in runs/kl_rev_rmse-love-embedded-s0"""


def main() -> None:
    """Reads the words, builds the report, says where it is."""
    settings = parse_words(main_words(), ("run",))
    if not settings.get("run"):
        raise UserError("run=FOLDER is needed; --help says more")
    print(build_report(RunFolder(Path(str(settings["run"])))))


if __name__ == "__main__":
    if wants_help(main_words()):
        print(HELP)
    else:
        guarded(main)
