"""trackio: trackio: curves, one value a round, tables, figures; files below the run's folder, never a server.

Nothing is sent, and no dashboard is started: a line says how to look at the run. Its log begins with each start of a
run, which tells it the earlier rounds again.
"""

import os
import shlex
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heal.healing.log import StepLog
from heal.tracking.charts import charts
from heal.tracking.tracker import StepCount, TrackedRun, Tracker, rounds_trained

PACKAGE = "trackio"
_FOLDER = "TRACKIO_DIR"  # trackio reads it when it is imported
_PROJECT = "heal"


def start(run: TrackedRun) -> "TrackioTracker":
    """A run in the project of the recipe's tracking section, in `trackio/` below the run's folder."""
    return TrackioTracker(run)


class TrackioTracker(Tracker):
    """Writes trackio's database itself: `trackio.init` asks the hub who is there, and may send to a Space or a server.

    Attributes:
        state: where the database is: where TRACKIO_DIR says, if the user set it, or below the folder of the first run
            that this process tracks.
    """

    def __init__(self, run: TrackedRun):
        with _below(run.folder / "trackio"):
            from trackio.sqlite_storage import SQLiteStorage
            from trackio.utils import TRACKIO_DIR, to_json_safe

        self._storage, self._console, self._folder = SQLiteStorage, run.console, TRACKIO_DIR
        self._project, self._name, self._id = run.settings.project or _PROJECT, run.name, uuid.uuid4().hex
        self._steps = StepCount()
        self._ended = False
        self.state = f"in {self._folder}"
        self._storage.validate_project_name(self._project)
        self._log({"round": 0}, 0, to_json_safe(dict(run.recipe)))

    def _log(self, values: Mapping[str, Any], step: int, config: dict[str, Any] | None = None) -> None:
        self._storage.bulk_log(self._project, self._name, [dict(values)], steps=[step], config=config, run_id=self._id)

    def step_log(self, number: int, epochs: int, log: StepLog, new: bool = True) -> None:
        curves = {name: value for name, value in log.flat().items() if "/" in name}
        step = self._steps.of(number, log)
        self._log({"rounds_trained": rounds_trained(number, epochs, log)} | curves, step)

    def round(self, number: int, values: Mapping[str, float], new: bool = True) -> None:
        self._log(charts(values), number)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], number: int | None = None) -> None:
        if rows:
            from trackio import Table

            shown = Table(data=[dict(row) for row in rows])
            self._log({name: shown._to_dict(self._project, self._name)}, number or 0)

    def figure(self, name: str, path: Path) -> None:
        from trackio import Image

        image = Image(path)
        image._save(self._project, self._name)
        self._log({name: image._to_dict()}, 0)

    def finish(self, summary: Mapping[str, Any]) -> None:
        if not self._ended:
            from trackio import Table

            self._log({"end": Table(data=[dict(summary)])._to_dict(self._project, self._name)}, 0)
            folder = shlex.quote(str(self._folder))
            self._console.say(f"trackio: {_FOLDER}={folder} trackio show --project {shlex.quote(self._project)}")
            self._ended = True


@contextmanager
def _below(folder: Path) -> Iterator[None]:
    """Lets trackio, when it is imported inside, keep its files in `folder`, emptied; the user's choice counts."""
    if os.environ.get(_FOLDER):
        yield
        return
    shutil.rmtree(folder, ignore_errors=True)
    os.environ[_FOLDER] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ[_FOLDER]
