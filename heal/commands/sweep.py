"""Trains many runs: every combination of some keys' values."""

from collections.abc import Sequence
from dataclasses import dataclass

from heal.config import key
from heal.console import counted
from heal.environment import usable_cores
from heal.errors import RoundError
from heal.guard import CONTINUES, command
from heal.options import options_help, read_options

USAGE = "heal sweep key=a,b,c ... [jobs=1]"
PURPOSE = """Trains a run for every combination of the values that commas separate: `recipe=kl_rev_rmse,nll seed=0,1,2`
makes six runs. All keys of heal train are taken; `seed` and `rounds` are short for run.seed and run.rounds.
A comma inside brackets or quotes belongs to its value: `trait="'love,curiosity',love"` is two runs, the first of both.

The same command again continues what was stopped and repeats nothing that is finished. Each run's console goes to
a .log file beside its folder; compare the runs with heal compare."""


@dataclass
class Options:
    jobs: int = key(1, "runs side by side; they share the cores, and each has one of the GPUs", 1)


def main(words: Sequence[str]) -> None:
    """`heal sweep`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), sweep, CONTINUES)


def sweep(words: Sequence[str]) -> None:
    """Runs the cells and says which failed."""
    own = [word for word in words if word.startswith("jobs=")]
    jobs = read_options(Options, own).jobs
    from heal.studies.sweep import cells, run_cells, visible_gpus

    planned = cells([word for word in words if word not in own])
    print(f"{counted(len(planned), 'run')}, {jobs} at a time", flush=True)
    failed = run_cells(planned, jobs, usable_cores(), visible_gpus(), lambda text: print(text, flush=True))
    for cell in planned:
        print(("failed    " if cell in failed else "finished  ") + str(cell.folder))
    if failed:
        raise RoundError(f"{len(failed)} of {counted(len(planned), 'run')} failed; the .log file of each says why.")
