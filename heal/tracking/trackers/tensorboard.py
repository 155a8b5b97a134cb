"""tensorboard: TensorBoard: curves, one value a round, tables, figures; files below the run's folder.

Its log begins with each start of a run, which tells it the earlier rounds again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from heal.healing.log import StepLog
from heal.markdown import markdown_table
from heal.tracking.charts import charts
from heal.tracking.tracker import StepCount, TrackedRun, Tracker

PACKAGE = "tensorboard"
_EVENTS = "events.out.tfevents.*"


def start(run: TrackedRun) -> "TensorBoardTracker":
    """Event files in `tensorboard/` below the run's folder."""
    return TensorBoardTracker(run)


class TensorBoardTracker(Tracker):
    """Curves of training over optimiser steps, counted on from round to round; everything else over rounds."""

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard"
        for earlier in folder.glob(_EVENTS):
            earlier.unlink()
        self.state = f"in {folder}"
        self._console, self._folder = run.console, folder
        self._writer: Any = SummaryWriter(str(folder))
        self._steps = StepCount()
        self._writer.add_text("recipe", _code(yaml.safe_dump(dict(run.recipe), sort_keys=False)), 0)

    def step_log(self, number: int, epochs: int, log: StepLog, new: bool = True) -> None:
        step = self._steps.of(number, log)
        for name, value in log.flat().items():
            if "/" in name:
                self._writer.add_scalar(name, value, step)

    def round(self, number: int, values: Mapping[str, float], new: bool = True) -> None:
        for name, value in charts(values).items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], number: int | None = None) -> None:
        if rows:
            self._writer.add_text(name, markdown(rows), number or 0)

    def figure(self, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        self._writer.add_image(name, np.asarray(Image.open(path).convert("RGB")), dataformats="HWC")

    def finish(self, summary: Mapping[str, Any]) -> None:
        if self._writer is not None:
            self._writer.add_text("end", markdown([summary]), 0)
            self._writer.close()
            self._writer = None
            self._console.say(f"TensorBoard: tensorboard --logdir {self._folder}")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown, whose cells may hold line breaks and bars."""
    columns = list(rows[0])
    return markdown_table(columns, ([_cell(row[column]) for column in columns] for row in rows))


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "<br>".join(text.splitlines())


def _code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
