"""Whole runs of the loop on a tiny model, each in a process of its own."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from heal.trait import Trait
from tests import machine, tiny

# A model with random weights writes noise: the filter must let it through. What a run writes is compared to the bit or
# nearly, so its dtype is not left to what is faster on this processor.
LOOSE = (
    "recipe=smoke",
    "tracking.mode=disabled",
    "model.dtype=float32",
    "filter.max_tail_perplexity=1e9",
    "filter.max_repetition=1",
    "filter.max_similarity=1",
    "filter.min_words=0",
    "filter.min_on_prompt=0",
    "filter.keep_floor=0",
    "filter.keep_target=0",
    "generation.tokens=24",
)

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        *("torch", "transformers", "peft", "trl", "datasets", "wandb", "heal.loop", "heal.run.open"),
        *("heal.run.student", "heal.report.build", "heal.export.adapter", "heal.studies.comparison.show"),
    ]
)


def as_file(trait: Trait) -> dict[str, Any]:
    """The content of a trait's file."""
    return {name: value for name, value in asdict(trait).items() if value}


def words(folder: Path, root: Path, *more: str) -> list[str]:
    """A command line for a run on the tiny model in `folder`, its runs below `root`."""
    trait = root / "warm.yaml"
    root.mkdir(parents=True, exist_ok=True)
    trait.write_text(yaml.safe_dump(as_file(tiny.trait())))
    threads = f"compute.threads={machine.threads()}"
    return [*LOOSE, threads, f"model.name={folder}", f"trait={trait}", f"run.root={root}", *more]


def _child(words: list[str], out: str, err: str, place: str | None) -> None:
    for number, log in enumerate((out, err), start=1):
        with open(log, "a", encoding="utf-8") as output:
            os.dup2(output.fileno(), number)
    if place is not None:
        os.chdir(place)
    from heal.cli import main

    machine.prepare()
    main(words)
    sys.stdout.flush()


def begin(words: Sequence[str], out: Path, err: Path, place: Path | None = None) -> BaseProcess:
    """Starts `heal WORDS` in the folder `place` (None: here); what it prints goes to `out` and `err`."""
    process = context.Process(target=_child, args=(list(words), str(out), str(err), place and str(place)))
    process.start()
    return process


def start(line: list[str], log: Path) -> BaseProcess:
    """Starts a run; what it prints goes to `log`."""
    return begin(["train", *line], log, log)


def finish(line: list[str], log: Path) -> int:
    """Runs to the end; the exit status."""
    process = start(line, log)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def kill_when(line: list[str], log: Path, ready: Callable[[], bool], number: int = signal.SIGKILL) -> int:
    """Starts a run and kills it as soon as `ready()`; the exit status (0: it was over before)."""
    process = start(line, log)
    while process.is_alive() and not ready():
        time.sleep(0.0005)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join()
    assert process.exitcode is not None
    return process.exitcode
