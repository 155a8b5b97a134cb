"""A step of a run, and the one runner of all of them: is it finished, compute or read, write whole, say, log."""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from heal.console import Console
from heal.parallel import by_first
from heal.progress import Progress
from heal.run.files import Files
from heal.run.folder import RunFolder
from heal.tracking.tracker import Tracker


class Artifact(Protocol):
    """What a step leaves: typed, frozen, written and read back by itself."""

    def files(self) -> Files:
        """The files that hold it, by name."""
        ...


A = TypeVar("A", bound=Artifact)


class Runs(Protocol):
    """Whatever gets steps done: a run's Runner, or nothing more than their computation."""

    def __call__(self, step: "Step[A]", at: Path) -> A:
        """The artifact of `step` in the folder `at`."""
        ...


class Step(ABC, Generic[A]):
    """One piece of a run's work: its inputs are its fields, its output is its artifact."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As the manifest, the console and the events have it; unique in its folder."""

    @abstractmethod
    def compute(self, progress: Progress) -> A:
        """Does the work; where there are several processes, each of them calls it."""

    @abstractmethod
    def load(self, folder: Path) -> A:
        """The artifact that an earlier process left in `folder`."""

    @abstractmethod
    def finding(self, artifact: A) -> str:
        """What came out, in one line."""

    def warnings(self, artifact: A) -> list[str]:
        """What a user should know of it, one line each, whether it was computed now or before."""
        return []


@dataclass(frozen=True)
class Runner:
    """Runs steps, each once: what is finished and whole on disk is read, all else is computed and written.

    Attributes:
        folder: of the run.
        console: shows what is being done, how far it is and what came out.
        tracker: gets one event for each step that was computed.
    """

    folder: RunFolder
    console: Console
    tracker: Tracker

    def __call__(self, step: Step[A], at: Path) -> A:
        """The artifact of `step` in the folder `at`.

        Raises:
            UserError: a file of a finished step is damaged, and later results are built on it.
        """
        if self.folder.finished(at, step.name):
            artifact = by_first(lambda: step.load(at))
        else:
            for path in self.folder.damaged(at, step.name):
                self.console.warn(f"{path}: missing or not what the run wrote; {step.name} is done again")
            artifact = self._computed(step, at)
        self.console.warn(*step.warnings(artifact))
        return artifact

    def _computed(self, step: Step[A], at: Path) -> A:
        start = time.perf_counter()
        with self.console.step(step.name) as line:
            computed = step.compute(line.progress)
            artifact = by_first(lambda: computed)  # what later steps rest on is the same in every process
            finding = step.finding(artifact)
            line.result(finding)
            seconds = time.perf_counter() - start
            by_first(lambda: self.folder.finish(at, step.name, artifact.files(), seconds))
        self.tracker.event("step", {"folder": at.name, "step": step.name, "seconds": seconds, "finding": finding})
        return artifact
