"""What EleutherAI's lm-eval measured of a run, base and student side by side: numbers alone, no model."""

from dataclasses import dataclass
from pathlib import Path

from heal.evaluation.stats import Estimate
from heal.records import read_sealed, sealed_bytes
from heal.run.files import write_atomic

FOLDER = "harness"  # of a run
_REMEDY = "delete it and start heal eval-harness again"


@dataclass(frozen=True)
class HarnessFigures:
    """One metric of one task.

    Attributes:
        task, metric, filter: as lm-eval names them.
        shots: examples before each item.
        limit: items asked at most; None: all.
        chat: whether items were put as a chat.
        higher_is_better: None where the task does not say.
        lm_eval: its version.
        version: of the task.
        base, student: the metric, with its interval over items (NaN where it is no mean of items).
        delta: the paired difference.
    """

    task: str
    metric: str
    filter: str
    shots: int | None
    limit: int | None
    chat: bool
    higher_is_better: bool | None
    lm_eval: str
    version: str
    base: Estimate
    student: Estimate
    delta: Estimate

    @property
    def title(self) -> str:
        """The task and its metric in a few words."""
        return f"{self.task}, {self.metric}" + (f" ({self.filter})" if self.filter != "none" else "")

    @property
    def note(self) -> str:
        """How it was asked."""
        better = {True: ", higher is better", False: ", lower is better", None: ""}[self.higher_is_better]
        how = ", as a chat" if self.chat else ""
        return f"lm-eval {self.lm_eval}, {self.shots or 0} examples{how}{better}"


@dataclass(frozen=True)
class Harness:
    """Everything that lm-eval measured after a round (from 1), in the order in which it was asked."""

    round: int
    figures: tuple[HarnessFigures, ...] = ()

    def with_tasks(self, figures: tuple[HarnessFigures, ...]) -> "Harness":
        """The same with the tasks of `figures`, which replace earlier ones of their names."""
        again = {one.task for one in figures}
        return Harness(self.round, (*(one for one in self.figures if one.task not in again), *figures))

    def save(self, run: Path) -> Path:
        """Writes it into the run's folder; where."""
        path = _path(run, self.round)
        write_atomic(path, sealed_bytes(self))
        return path

    @staticmethod
    def load(run: Path, round: int) -> "Harness":
        """What was measured after that round; nothing where there is no such file. UserError where it is damaged."""
        path = _path(run, round)
        return read_sealed(Harness, path, _REMEDY) if path.is_file() else Harness(round)


def _path(run: Path, round: int) -> Path:
    return run / FOLDER / f"round-{round:02d}.json"
