"""A round of two processes against the same round of one, one thread each."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from heal import parallel
from heal.errors import RoundError
from heal.options import resolve_device
from heal.recipe import load_recipe
from heal.records import read_json
from heal.studies.bench.limits import Limits
from heal.studies.bench.setting import Setting, loader, setting
from heal.studies.bench.table import Row
from heal.studies.bench.whole import Both
from heal.trait import load_trait

PROCESSES = 2


@dataclass(frozen=True)
class Piece:
    """One piece of a round: wall seconds, those in shares of rows, and bytes that the processes handed over."""

    name: str
    seconds: float
    shared: float
    sent: int


def processes_piece(setting: Setting, limits: Limits) -> Iterator[Row]:
    """Each piece of a round by two processes and by one; the row `processes_2` is their sum."""
    device = setting.model.device
    if device.type == "cuda" and torch.cuda.device_count() < PROCESSES:
        yield Row("processes_2", None, note="not measured: two processes need two GPUs")
        return
    alone, both = (_measured(count, setting, device) for count in (1, PROCESSES))
    for one, two in zip(alone, both, strict=True):
        yield _row(f"processes_2_{one.name}", [one], [two])
    yield _row("processes_2", alone, both, "a round, one thread a process; ")


def _row(name: str, alone: Sequence[Piece], both: Sequence[Piece], note: str = "") -> Row:
    one, two = (sum(piece.seconds for piece in pieces) for pieces in (alone, both))
    share = sum(piece.shared for piece in both) / two
    sent = sum(piece.sent for piece in both)
    return Row(name, two, one, two / one, note=f"{note}{share:.0%} in shares, {sent / 1000:,.0f} kB sent")


def _measured(count: int, setting: Setting, device: torch.device) -> list[Piece]:
    """The pieces of a round by so many processes, each of one thread."""
    recipe, trait = setting.recipe.recipe, setting.trait.name
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
        common |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "OMP_NUM_THREADS": 1}
        common |= {"ACCELERATE_USE_CPU": str(device.type == "cpu").lower()}
        out = Path(folder) / "pieces.json"
        words = [sys.executable, "-m", __package__, str(out), recipe, trait]
        free.close()
        running = []
        for rank in range(count):
            variables = {name: str(value) for name, value in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            running.append(subprocess.Popen(words, env=os.environ | variables, stdout=subprocess.DEVNULL))
        failed = [process.wait() for process in running]
        if any(failed):
            raise RoundError(f"the round of {count} processes did not end; what they said is above")
        return [Piece(**piece) for piece in read_json(out)]


def measure(words: Sequence[str]) -> None:
    """Measures a round as one of the processes; the first writes it to the file that is the first word."""
    out, recipe_name, trait_name = words
    torch.set_num_threads(1)
    recipe, trait = load_recipe([f"recipe={recipe_name}"]), load_trait(trait_name)
    made = parallel.local_first(partial(setting, recipe, trait, loader(recipe.model, resolve_device("auto"))))
    measured = []
    for name, piece in Both(made, plain=False).pieces.items():
        ours, _, _ = piece()
        parallel.together(lambda: None)
        begin, before = time.perf_counter(), parallel.traffic()
        ours()
        now = parallel.traffic()
        seconds, shared = time.perf_counter() - begin, now.seconds - before.seconds
        sent = sum(parallel.together(lambda now=now, before=before: now.sent - before.sent))  # type: ignore[misc]
        measured.append(Piece(name, seconds, shared, sent))
    parallel.by_first(lambda: Path(out).write_text(json.dumps([asdict(piece) for piece in measured])))
