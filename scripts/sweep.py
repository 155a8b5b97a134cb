"""Many runs: `python scripts/sweep.py recipe=kl_rev_rmse,nll seed=0,1,2 rounds=8`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from heal.console import counted  # noqa: E402
from heal.environment import usable_cores  # noqa: E402
from heal.errors import RoundError, UserError  # noqa: E402
from heal.guard import CONTINUES, command  # noqa: E402
from heal.recipe import main_words  # noqa: E402
from heal.studies.sweep import cells, run_cells  # noqa: E402

HELP = """usage: python scripts/sweep.py key=a,b,c ... [jobs=1]

Runs heal/train.py for every combination of the values that commas separate: `recipe=kl_rev_rmse,nll seed=0,1,2`
makes six runs. All keys of heal/train.py are taken; `seed` and `rounds` are short for run.seed and run.rounds.
A comma inside brackets or quotes belongs to its value.

  jobs=1  runs side by side; they share the cores

The same command again continues what was stopped and repeats nothing that is finished. Each run's console goes to
a .log file beside its folder; compare the runs with scripts/compare.py."""


def main() -> None:
    """Reads the words, runs the cells, says which failed."""
    words = main_words()
    jobs = [word for word in words if word.startswith("jobs=")]
    number = jobs[-1].removeprefix("jobs=") if jobs else "1"
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"jobs={number}: a whole number of runs, at least 1")
    asked = cells([word for word in words if not word.startswith("jobs=")])
    print(f"{counted(len(asked), 'run')}, {number} at a time", flush=True)
    failed = run_cells(asked, int(number), usable_cores(), lambda text: print(text, flush=True))
    for cell in asked:
        print(("failed    " if cell in failed else "finished  ") + str(cell.folder))
    if failed:
        raise RoundError(f"{len(failed)} of {counted(len(asked), 'run')} failed; the .log file of each says why.")


if __name__ == "__main__":
    command(main_words(), lambda: HELP, main, CONTINUES)
