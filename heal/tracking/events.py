"""The run's event log, which is always kept: one line an event in events.jsonl."""

from collections.abc import Mapping
from typing import Any

from heal.healing.log import StepLog
from heal.run.folder import Events
from heal.tracking.tracker import Tracker, rounds_trained


class EventLog(Tracker):
    """Writes events, training steps and rounds; tables, figures and artifacts are files of the run already."""

    state = ""

    def __init__(self, events: Events):
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
