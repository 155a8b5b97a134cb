"""Several processes that work on one thing, as torchrun starts them, without its three seconds."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests import machine
from tests.running import context

LONGEST = 300.0  # seconds


def _one(variables: dict[str, str], logs: Path, work: Callable[..., Any], arguments: Sequence[Any]) -> None:
    os.environ.update(variables)
    for number, kind in enumerate(("out", "err"), start=1):
        with open(logs / f"{variables['RANK']}.{kind}", "a", encoding="utf-8") as output:
            os.dup2(output.fileno(), number)
    machine.prepare()
    work(*arguments)


def launch(count: int, logs: Path, work: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
    """Starts `work(*arguments)` in so many processes; what each prints goes to `<rank>.out` and `.err` in `logs`."""
    logs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(count):
        variables = {name: str(value) for name, value in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        processes.append(context.Process(target=_one, args=(variables, logs, work, arguments)))
        processes[-1].start()
    return processes


def ended(processes: Sequence[BaseProcess], within: float = LONGEST) -> list[int | None]:
    """The exit status of each, None where it had not ended in time; all are over afterwards."""
    until = time.monotonic() + within
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    status = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            process.kill()
            process.join()
    return status


def said(logs: Path, kind: str = "err") -> list[str]:
    """The lines of heal's that the processes printed, in the order of their ranks; other libraries' are left out."""
    lines = [line for path in sorted(logs.glob(f"*.{kind}")) for line in path.read_text().splitlines()]
    return [line for line in lines if kind == "out" or line.startswith("heal: ")]


def wait_for(what: Callable[[], bool], within: float = LONGEST) -> None:
    """Returns once `what()` is true."""
    until = time.monotonic() + within
    while not what():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)
