"""Many runs: every combination of some values of keys, each run continued where it stopped and none repeated."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from heal.console import counted
from heal.counts import lowered_to
from heal.errors import UserError
from heal.evaluation.choice import why_stop
from heal.evaluation.metrics import RoundMetrics
from heal.launcher import on_cpu
from heal.recipe import load_recipe, sized
from heal.run.folder import RunFolder
from heal.run.open import default_name, facts_of
from heal.traits import trait_of

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
_SHORT = {"seed": "run.seed", "rounds": "run.rounds"}
_IN_NAME = ("recipe", "trait", "sign", "run.seed", "model.name")  # what a run's default name already says
_SENTENCES = ("positive", "negative")  # one value each, commas and all
_POLL_SECONDS = 2.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        words: what heal train is given.
        folder: the run's folder.
        rounds: how many rounds it has when it is finished.
    """

    words: tuple[str, ...]
    folder: Path
    rounds: int

    @property
    def log(self) -> Path:
        """Where the run's console goes."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def rounds_done(self) -> int:
        """Rounds whose last file is there (cheap: nothing is checked)."""
        return len(list(self.folder.glob("rounds/*/metrics.json")))

    def finished(self) -> bool:
        """Whether the report is written, and the adapter of as many whole rounds as asked for.

        More rounds are as good, and fewer where the recipe's own rule stopped it there.

        Raises:
            UserError: the folder holds a run of other settings.
        """
        run, recipe = RunFolder(self.folder), load_recipe(self.words)
        if not (run.path / "recipe.yaml").is_file():
            return False
        recipe, _ = run.as_begun(recipe)
        trait = trait_of(recipe)
        lowered_to(trait, recipe)
        run.refuse_other(recipe, facts_of(recipe, trait, run.started().dtype))
        done = run.delivered()
        if not (run.report / "index.html").is_file() or done != run.rounds()[: len(done)]:
            return False
        metrics = [RoundMetrics.load(run.round(index)) for index in done]
        return len(metrics) >= self.rounds or why_stop(metrics, recipe.run) is not None


def cells(words: Sequence[str]) -> list[Cell]:
    """Every combination of the values that commas separate, the last key changing fastest.

    Args:
        words: `key=a,b,c` as heal train takes them; `seed` and `rounds` are short for `run.seed` and
            `run.rounds`. A comma inside brackets, quotes or a persona belongs to its value.

    Raises:
        UserError: a cell that heal train would refuse, or a name given to more than one run.
    """
    choices: dict[str, list[str]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise UserError(f"'{word}': expected key=value or key=a,b,c; --help says more")
        choices[_SHORT.get(name, name)] = [text] if name in _SENTENCES else split_values(text)
    made = []
    for values in itertools.product(*choices.values()):
        chosen = [f"{name}={value}" for name, value in zip(choices, values, strict=True)]
        recipe = load_recipe(chosen)
        name = recipe.run.name or default_name(recipe, trait_of(recipe))
        varied = [
            f"{key.rpartition('.')[2]}={value}"
            for (key, among), value in zip(choices.items(), values, strict=True)
            if len(among) > 1 and key not in _IN_NAME
        ]
        name = re.sub(r"[^A-Za-z0-9_.=-]+", "_", "-".join([name, *varied]))
        folder = Path(recipe.run.root).expanduser() / name
        made.append(Cell((*chosen, f"run.name={name}"), folder, sized(recipe).run.rounds))
    if len({cell.folder for cell in made}) < len(made):
        if "run.name" in choices:
            raise UserError(f"run.name={recipe.run.name}: names one run, and the sweep has {len(made)}; leave it out")
        raise UserError("two cells of the sweep are the same run; is a value given twice?")
    return made


def split_values(text: str) -> list[str]:
    """The values that commas separate, outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in ")}]")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


@dataclass
class _Going:
    cell: Cell
    slot: int  # of the `jobs` that run side by side
    process: subprocess.Popen
    start: float
    done_before: int
    shown: int = field(default=-1)


def visible_gpus() -> list[str]:
    """The GPUs that runs may use, as CUDA_VISIBLE_DEVICES names them; none where the launcher asks for CPUs."""
    if on_cpu():
        return []
    import torch

    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (names or [str(index) for index in range(torch.cuda.device_count())])[: torch.cuda.device_count()]


def run_cells(asked: Sequence[Cell], jobs: int, cores: int, gpus: Sequence[str], say: Say) -> list[Cell]:
    """Runs what is not finished, `jobs` at a time; a stopped sweep stops its runs, which continue next time.

    Args:
        asked: the cells.
        jobs: runs side by side.
        cores: shared among them.
        gpus: of which each run has one, by itself where there are as many as runs (see `visible_gpus`).
        say: gets a line when a run starts, after each of its rounds, and when it ends.

    Returns:
        the cells whose run failed.

    Raises:
        UserError: a cell's folder holds a run of other settings; nothing has been started then.
    """
    waiting = [cell for cell in asked if not cell.finished()]
    if len(waiting) < len(asked):
        before = len(asked) - len(waiting)
        say(f"{before} of {counted(len(asked), 'run')} {'was' if before == 1 else 'were'} finished before")
    clock = _Clock(sum(cell.rounds - min(cell.rounds, cell.rounds_done()) for cell in waiting))
    going: list[_Going] = []
    failed: list[Cell] = []
    try:
        while waiting or going:
            while waiting and len(going) < jobs:
                cell = waiting.pop(0)
                so_far = f"{cell.rounds_done()} of {counted(cell.rounds, 'round')} done"
                slot = min(set(range(jobs)) - {run.slot for run in going})
                gpu = gpus[slot % len(gpus)] if gpus else None
                on = "" if gpu is None else f" on GPU {gpu}"
                say(f"{cell.folder.name}: started{on}, {so_far}; {cell.log}")
                going.append(_start(cell, slot, max(1, cores // jobs), gpu))
            time.sleep(_POLL_SECONDS)
            for run in list(going):
                ended = run.process.poll() is not None
                done = run.cell.rounds_done()
                if done > max(run.shown, run.done_before):
                    clock.finished(done - max(run.shown, run.done_before))
                    run.shown = done
                    say(f"{run.cell.folder.name}: round {done} of {run.cell.rounds}; {clock.left()}")
                if ended:
                    going.remove(run)
                    minutes = (time.perf_counter() - run.start) / 60
                    if run.process.returncode == 0:
                        say(f"{run.cell.folder.name}: finished in {minutes:.0f} min")
                    else:
                        failed.append(run.cell)
                        say(f"{run.cell.folder.name}: failed: {_why(run.process.returncode, run.cell.log)}")
    finally:
        for run in going:
            run.process.terminate()
        for run in going:
            run.process.wait()
    return failed


def _start(cell: Cell, slot: int, threads: int, gpu: str | None) -> _Going:
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    words = list(cell.words)
    if not any(word.startswith("compute.threads=") for word in words):
        words.append(f"compute.threads={threads}")
    with open(cell.log, "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, str(TRAIN), *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}),
        )
    return _Going(cell, slot, process, time.perf_counter(), cell.rounds_done())


def _why(status: int, log: Path) -> str:
    """What ended a run that failed: the signal that killed it, or the last line that it said."""
    if status < 0:
        return f"killed by signal {-status}" + (" (out of memory?)" if -status == signal.SIGKILL else "")
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"see {log}"


class _Clock:
    """How long the rounds that are left will take, from those that were done."""

    def __init__(self, rounds: int):
        self._left = rounds
        self._done = 0
        self._start = time.perf_counter()

    def finished(self, rounds: int) -> None:
        self._done += rounds
        self._left = max(0, self._left - rounds)

    def left(self) -> str:
        minutes = self._left * (time.perf_counter() - self._start) / self._done / 60
        return f"about {minutes / 60:.1f} h left in all" if minutes >= 90 else f"about {minutes:.0f} min left in all"
