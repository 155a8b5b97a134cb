"""The run's event log, which is always kept: one line an event in events.jsonl."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heal.healing.log import StepLog
from heal.run.files import append_line
from heal.tracking.tracker import Tracker, rounds_trained


class EventLog(Tracker):
    """Writes events, training steps and rounds; tables, figures and artifacts are files of the run already."""

    state = ""

    def __init__(self, events: "Events"):
        """Takes the file, which an earlier process may have begun: what is not new is not written again."""
        self._events = events

    def event(self, kind: str, content: Mapping[str, Any]) -> None:
        self._events.write(kind, dict(content))

    def step_log(self, number: int, epochs: int, log: StepLog, new: bool = True) -> None:
        if new:
            axis = {"round": number, "rounds_trained": rounds_trained(number, epochs, log)}
            self._events.write("training", axis | log.flat())

    def round(self, number: int, values: Mapping[str, float], new: bool = True) -> None:
        if new:
            self._events.write("round", {"round": number} | dict(values))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._events.write("end", dict(summary))


class Events:
    """The file: one line an event, whole or not at all, append-only."""

    def __init__(self, path: Path):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_partial_line(path)

    def write(self, kind: str, content: dict[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 3), "kind": kind} | content, default=str)
        append_line(self._path, line.encode())


def _drop_partial_line(path: Path) -> None:
    """Cuts what a killed process left of its last line."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
