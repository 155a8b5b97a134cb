"""What every tracker is told, and how several are told at once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heal import choices
from heal.config import TrackingConfig
from heal.console import Console
from heal.errors import UserError

if TYPE_CHECKING:
    from heal.healing.log import StepLog

TRACKERS = "heal.tracking.trackers"
EVENTS = "events.jsonl"


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker needs to know of a run before anything happens.

    Attributes:
        name: of the run.
        folder: of the run; a tracker's own files go into a folder of its own below it.
        recipe: resolved, as plain values.
        settings: the recipe's tracking section.
        console: for what a tracker has to say, such as that it cannot go on; it never stops a run that began.
    """

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    settings: TrackingConfig
    console: Console = field(default_factory=Console)


class Tracker:
    """Is told what a run does, and keeps or shows what it can; a backend overrides what it has a place for.

    Rounds are counted from 1. What is not `new` was done by an earlier process: a log that goes on has it already,
    while one that begins with each process has not.

    Attributes:
        state: in a word, for the console and the event log; empty where its name says everything.
    """

    state: str = "on"

    def event(self, kind: str, content: Mapping[str, Any]) -> None:
        """Something that happened, as plain values."""

    def step_log(self, number: int, epochs: int, log: "StepLog", new: bool = True) -> None:
        """A step of training, or a validation.

        Args:
            number: of the round, from 1.
            epochs: of a round.
            log: the numbers.
            new: see the class.
        """

    def round(self, number: int, values: Mapping[str, float], new: bool = True) -> None:
        """One value of each name for a finished round; see `step_log`.

        Round 0 is base: the student before the first round. `heal.tracking.charts` chooses what is worth a chart.
        """

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], number: int | None = None) -> None:
        """A table; every row has the columns of the first.

        Args:
            name: of the table; that of each round has the same.
            rows: by column.
            number: of the round, from 1; None where it is of the whole run.
        """

    def figure(self, name: str, path: Path) -> None:
        """An image."""

    def artifact(self, name: str, kind: str, folder: Path) -> None:
        """A folder of files, kept as a whole."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The end of the run, or of this process; may come twice."""


class Trackers(Tracker):
    """Several trackers as one: each is told everything, in their order."""

    def __init__(self, trackers: Mapping[str, Tracker], console: Console | None = None):
        """Takes the trackers by name, and where one that fails is said."""
        self.trackers = dict(trackers)
        self._console = console or Console()

    @property
    def state(self) -> str:  # type: ignore[override]
        """Of each by its name: `events.jsonl, wandb offline`."""
        return ", ".join(f"{name} {tracker.state}".rstrip() for name, tracker in self.trackers.items())

    def event(self, kind: str, content: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.event(kind, content))

    def step_log(self, number: int, epochs: int, log: "StepLog", new: bool = True) -> None:
        self._each(lambda tracker: tracker.step_log(number, epochs, log, new))

    def round(self, number: int, values: Mapping[str, float], new: bool = True) -> None:
        self._each(lambda tracker: tracker.round(number, values, new))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], number: int | None = None) -> None:
        self._each(lambda tracker: tracker.table(name, rows, number))

    def figure(self, name: str, path: Path) -> None:
        self._each(lambda tracker: tracker.figure(name, path))

    def artifact(self, name: str, kind: str, folder: Path) -> None:
        self._each(lambda tracker: tracker.artifact(name, kind, folder))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.finish(summary))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        """Tells every tracker; one that fails is not told any more, since a run does not end for what it is told to."""
        for name, tracker in list(self.trackers.items()):
            try:
                tell(tracker)
            except Exception as error:  # a tracker is any code, such as a disk's or another library's
                if name == EVENTS:
                    raise
                self.trackers[name] = Tracker()
                self.trackers[name].state = "off"
                self._console.warn(f"{name} is off ({one_line(error)}); {EVENTS} has everything")


def rounds_trained(number: int, epochs: int, log: "StepLog") -> float:
    """An axis that counts rounds, a fraction within each: 0.5 is half of the first."""
    return number - 1 + log.epoch / epochs


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


class StepCount:
    """Counts optimiser steps on from round to round, for a tracker whose axis is a whole number of steps."""

    def __init__(self) -> None:
        self._number, self._before, self._last = 1, 0, 0

    def of(self, number: int, log: "StepLog") -> int:
        """Steps until `log`, the next one of round `number`, with those of the rounds before."""
        if number != self._number:
            self._number, self._before = number, self._last
        self._last = self._before + log.step
        return self._last


def require_trackers(names: Iterable[str]) -> None:
    """Raises UserError, with the command that installs it, where the package of a tracker is missing."""
    packages = choices.load_all(TRACKERS, "PACKAGE", optional=True)
    for name in names:
        package = packages.get(name)
        if package is not None and find_spec(package) is None:
            raise UserError(f"tracking.to={name}: the package {package} is not installed: pip install {package}")


def start_trackers(run: TrackedRun, events: Tracker) -> Trackers:
    """The event log and the trackers of `tracking.to`, started; the log's first event says in which state each is.

    Raises:
        UserError: no such tracker, or one that does not start.
    """
    started = {name: _started(name, run) for name in dict.fromkeys(run.settings.to)}
    events.event("start", {"config": run.recipe} | {name: tracker.state for name, tracker in started.items()})
    return Trackers({EVENTS: events} | started, run.console)


def _started(name: str, run: TrackedRun) -> Tracker:
    try:
        tracker: Tracker = choices.load(TRACKERS, name, "start")(run)
    except UserError:
        raise
    except Exception as error:  # see Trackers
        raise UserError(
            f"tracking.to={name}: it does not start ({one_line(error)}); take it out of tracking.to"
        ) from error
    return tracker
