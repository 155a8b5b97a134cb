"""Several processes deal rows out, let the first alone write and speak, and all end together."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from heal import parallel
from heal.console import Console
from heal.errors import RoundError, UserError
from heal.guard import command
from heal.launcher import Launched, launched
from tests.cases import case
from tests.processes import ended, launch, said, wait_for


def _guarded(work) -> None:
    command([], str, lambda _: work(), "Again.", several=True)


def _collectives() -> None:
    rank, size = parallel.rank(), parallel.size()
    for count in (0, 1, size, 2 * size + 1):
        seen: list[int] = []

        def square(share: range, seen: list[int] = seen) -> list[tuple[int, torch.Tensor]]:
            seen += share
            # What is dealt out inside a share is that process's own.
            assert parallel.over_rows(3, list) == [0, 1, 2]
            assert parallel.by_first(lambda: rank) == rank
            wide = torch.arange(count).repeat(1000, 1)
            return [(row * row, wide[0, row : row + 1].bfloat16()) for row in share]

        found = parallel.over_rows(count, square)
        assert [value for value, _ in found] == [row * row for row in range(count)]
        assert [(tensor.dtype, tensor.tolist()) for _, tensor in found] == [
            (torch.bfloat16, [row]) for row in range(count)
        ]
        assert len(seen) in (count // size, -(-count // size))
    assert parallel.traffic().sent < 20_000  # a row of a wide tensor travels without the rest
    assert parallel.together(lambda: rank) == list(range(size))
    assert parallel.by_first(lambda: (rank, torch.empty(0, 3), torch.tensor(True)))[0] == 0
    assert parallel.first_alone(lambda shift: rank + shift)(5) == 5
    turns = parallel.together(lambda: None) and parallel.local_first(time.monotonic)
    times = parallel.together(lambda: turns)
    assert all(times[0] < later for later in times[1:])
    tensors = [torch.full((2, 3), float(rank)), torch.tensor([rank + 0.5])]
    parallel.summed(tensors)
    total = sum(range(size))
    assert tensors[0].tolist() == [[total] * 3] * 2
    assert tensors[1].tolist() == [total + size / 2]
    for error in (UserError("mine"), RoundError("ours", again=False), OSError(28, "No space left", "file")):

        def fail(error: Exception = error) -> list[int]:
            raise error

        for dealt in (lambda: parallel.by_first(fail), lambda: parallel.over_rows(size, lambda _: fail())):
            with pytest.raises(type(error)) as caught:
                dealt()
            assert (str(caught.value), getattr(caught.value, "again", False)) == (str(error), False)
    print("whole")
    Console().say("said once")


def _on(rank: int, work) -> None:
    if parallel.rank() == rank:
        work()
    parallel.together(lambda: None)


def _raise(error: BaseException) -> None:
    raise error


def _failing(kind: str) -> None:
    if kind == "bug in a share":
        parallel.together(lambda: 1 // (parallel.rank() - 1))
    elif kind == "bug outside":
        _on(1, lambda: 1 // 0)
    elif kind == "memory":
        parallel.over_rows(2, lambda share: _raise(MemoryError()) if share[0] else [0])
    elif kind == "mistake":
        parallel.over_rows(2, lambda share: _raise(UserError(f"row {share[0]}")))
    elif kind == "full disk":
        parallel.by_first(lambda: _raise(OSError(28, "No space left on device", "vector.safetensors")))
    elif kind == "killed":
        _on(1, lambda: os.kill(os.getpid(), signal.SIGKILL))
    elif kind == "stopped":
        _on(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    elif kind == "stopped while waiting":
        print("waiting", flush=True)
        _on(1, lambda: time.sleep(60))
    elif kind == "parted":
        parallel.by_first(lambda: 0) if parallel.rank() else parallel.together(lambda: 0)


def _fail(kind: str) -> None:
    _guarded(lambda: _failing(kind))


def _work() -> None:
    _guarded(_collectives)


def test_every_process_has_the_results_of_all_and_the_first_alone_prints(tmp_path: Path) -> None:
    for count in (2, 3):
        with case(count):
            logs = tmp_path / str(count)
            processes = launch(count, logs, _work)
            assert ended(processes) == [0] * count, [path.read_text() for path in sorted(logs.iterdir())]
            assert said(logs, "out") == ["whole", "said once"]


def test_however_one_process_ends_all_end_within_seconds_and_one_line_says_why(tmp_path: Path) -> None:
    kinds = {
        "bug in a share": "heal: unexpected ZeroDivisionError",
        "bug outside": "heal: unexpected ZeroDivisionError",
        "memory": "heal: out of memory",
        "mistake": "heal: row 0",
        "full disk": "heal: vector.safetensors: No space left on device. Again.",
        "killed": "heal: another process of this run ended without a word",
        "stopped": "heal: stopped. Again.",
        "stopped while waiting": "heal: stopped. Again.",
        "parted": "heal: unexpected AssertionError",
    }
    begun = {kind: launch(2, tmp_path / kind, _fail, kind) for kind in kinds}
    for kind, line in kinds.items():
        with case(kind):
            first, second = begun[kind]
            if kind == "stopped while waiting":
                wait_for(lambda kind=kind: said(tmp_path / kind, "out") == ["waiting"])
                os.kill(first.pid or 0, signal.SIGTERM)
                first.join(10)
                assert first.exitcode not in (None, 0)
                second.kill()
            status = ended([first, second])
            assert not {None, 0} & set(status), status
            (told,) = said(tmp_path / kind)
            assert told.startswith(line), told


def test_processes_that_were_announced_and_not_started_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=r"2 processes were announced .* MASTER_ADDR expected"):
        parallel.start(Launched(0, 2, 0, 2), timedelta(seconds=1))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    with pytest.raises(UserError, match="did not find each other within 1 s"):
        parallel.start(Launched(0, 2, 0, 2), timedelta(seconds=1))
    assert parallel.size() == 1
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(UserError, match="accelerate launch --num_processes started one process"):
        launched()
