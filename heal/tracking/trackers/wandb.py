"""wandb: Weights & Biases: curves, one value a round, tables, figures and the adapter.

It never asks for a key and never waits long for a server: without them it writes offline files, for `wandb sync`.
Nor does it stop a run: what W&B cannot do, or does not answer, is one warning, after which it is off.
"""

import hashlib
import os
import re
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import psutil

from heal.errors import UserError
from heal.healing.log import StepLog
from heal.run.files import sha256
from heal.tracking.charts import charts
from heal.tracking.mode import own_folders, resolve_mode, user_settings, without_secrets
from heal.tracking.tracker import TrackedRun, Tracker, one_line, rounds_trained

_INIT_SECONDS = 15.0  # for the server's answer
_CALL_SECONDS = 30.0  # for an answer of W&B's own process
_FINISH_SECONDS = 600.0  # for the upload of what is left at the end
_COPY_SECONDS = 600.0  # for a copy of an adapter
_HEADER = 7  # bytes of a W&B file that holds nothing
_ARTIFACT_NAME = 128  # characters that W&B takes
_PROJECT = "heal"  # where neither the recipe nor W&B's settings name one


def start(run: TrackedRun) -> "WandbTracker":
    """Tracking with the mode, project and entity of the recipe's tracking section."""
    return WandbTracker(run)


class WandbTracker(Tracker):
    """One W&B run a process; its files go into `wandb/` below the run's folder.

    Attributes:
        state: what W&B runs in: online, offline or disabled; off once it failed.
    """

    def __init__(self, run: TrackedRun):
        """Starts W&B; where that fails, one warning says why, and it is off.

        Raises:
            UserError: it does not start, and the recipe insists on `tracking.mode=online`.
        """
        self._console = run.console
        self._run: Any = None
        self._drawn: set[str] = set()
        self._staged = run.folder / "wandb" / "staged"
        self._environment, warnings = own_folders(run.folder / "wandb")
        self._earlier = {name: os.environ.get(name) for name in self._environment}
        os.environ.update(self._environment)
        try:
            self.state = mode = resolve_mode(run.settings.mode)
            if mode != "disabled":
                self._console.warn(*warnings)
                self._start(run, mode)
        except Exception as error:  # whatever W&B raises: it uses the system, its own process and a server
            if run.settings.mode == "online":
                self._restore_environment()
                raise UserError(
                    f"tracking.mode=online: W&B does not start ({_reason(error)}); log in with `wandb login`, or leave "
                    "it to tracking.mode=auto"
                ) from error
            self._give_up(error)
        if self._run is None:
            self._restore_environment()

    def _start(self, run: TrackedRun, mode: Literal["online", "offline"]) -> None:
        chosen = user_settings()
        with _at_most(2 * _INIT_SECONDS + _CALL_SECONDS):
            self._run = self._open(
                mode,
                run.settings.mode == "online",
                project=run.settings.project or chosen.project or _PROJECT,
                entity=run.settings.entity,
                config=dict(run.recipe),
                dir=os.environ["WANDB_DIR"],
                name=os.environ.get("WANDB_NAME") or run.name,
                group=os.environ.get("WANDB_RUN_GROUP") or run.name,
            )
            self._run.define_metric("round")
            self._run.define_metric("rounds_trained")
            for curve in ("train/*", "eval/*"):
                self._run.define_metric(curve, step_metric="rounds_trained")

    def _open(self, mode: Literal["online", "offline"], insisted: bool, **arguments: Any) -> Any:
        """A W&B run; offline where the server refuses or is slow, unless online is insisted on."""
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            init_timeout=_INIT_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
        )
        try:
            return wandb.init(mode=mode, settings=settings, **arguments)
        except wandb.errors.Error as error:
            if insisted or mode == "offline":
                raise
            self._console.warn(f"W&B is offline: the server refused the key or did not answer ({_reason(error)})")
        self.state = "offline"
        return wandb.init(mode="offline", settings=settings, **arguments)

    def _tell(self, act: Callable[[Any], object], upload: float = 0) -> None:
        """Does something with W&B's run; if W&B fails or hangs, it is off from then on, and one warning says so.

        Args:
            act: what is done.
            upload: seconds that it may take to send what it sends.
        """
        if self._run is None:
            return
        try:
            with _at_most(_CALL_SECONDS + upload):
                act(self._run)
        except Exception as error:  # see __init__
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        run, self._run, self.state = self._run, None, "off"
        written = None if run is None else Path(run.settings.sync_file)
        wrote = written is not None and written.is_file() and written.stat().st_size > _HEADER
        later = f"; or send only what it wrote until now: {_sync(run)}" if wrote else ""
        self._console.warn(
            f"W&B is off ({_reason(error)}); events.jsonl has everything, and the same command again tells W&B all of "
            f"it{later}"
        )
        self._restore_environment()
        import wandb

        with suppress(Exception), _at_most(_CALL_SECONDS):  # its process may have died, as the warning says
            wandb.teardown(exit_code=1)

    def _restore_environment(self) -> None:
        for name in self._environment:
            os.environ.pop(name, None)
            if (earlier := self._earlier[name]) is not None:
                os.environ[name] = earlier
        self._environment = {}

    def step_log(self, number: int, epochs: int, log: StepLog, new: bool = True) -> None:
        curves = {name: value for name, value in log.flat().items() if "/" in name}
        row = {"rounds_trained": rounds_trained(number, epochs, log)} | curves
        self._tell(lambda run: run.log(row))

    def round(self, number: int, values: Mapping[str, float], new: bool = True) -> None:
        """A chart for each of `charts`; W&B shows those of a section together, and folds it away."""
        drawn = charts(values)

        def draw(run: Any) -> None:
            for section in {name.partition("/")[0] for name in drawn} - self._drawn:
                run.define_metric(f"{section}/*", step_metric="round")
                self._drawn.add(section)
            run.log({"round": number} | drawn)

        self._tell(draw)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], number: int | None = None) -> None:
        """A table under a key of its own (a table logged twice under one key shows the first rows only)."""
        if self._run is None or not rows:
            return
        import wandb

        columns = list(rows[0])
        data = [[row[column] for column in columns] for row in rows]
        key = name if number is None else f"{name}/round_{number:02d}"
        self._tell(lambda run: run.log({key: wandb.Table(columns=columns, data=data)}))

    def figure(self, name: str, path: Path) -> None:
        if self._run is not None:
            import wandb

            self._tell(lambda run: run.log({name: wandb.Image(str(path))}))

    def artifact(self, name: str, kind: str, folder: Path) -> None:
        """A folder of files, kept as an artifact; of its name, what W&B does not allow is replaced or cut off."""
        if self._run is not None:
            import wandb

            def keep(run: Any) -> None:
                artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[-_ARTIFACT_NAME:], type=kind)
                artifact.add_dir(str(_kept_once(folder, self._staged)), policy="immutable", skip_cache=True)
                run.log_artifact(artifact)

            self._tell(keep, _COPY_SECONDS)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Waits for what is left to be sent, for minutes at most; offline, a line says how to send it later."""

        def sum_up(run: Any) -> None:
            run.summary.update(dict(summary))
            run.summary.keys()  # waits for the answer of W&B's process, which a frozen one does not give

        self._tell(sum_up)
        self._tell(
            lambda run: run.finish(), _FINISH_SECONDS + _CALL_SECONDS if self.state == "online" else _CALL_SECONDS
        )
        if self._run is not None:
            if self.state == "offline":
                self._console.say(f"W&B was offline; send it later by: {_sync(self._run)}")
            else:
                shutil.rmtree(self._staged, ignore_errors=True)  # uploaded
        self._run = None
        self._restore_environment()


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Ends W&B's own process if what is done inside takes longer: whatever waits for an answer of it then fails.

    Raises:
        TimeoutError: in place of that failure.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        for child in psutil.Process().children():
            with suppress(psutil.Error):  # it ended meanwhile
                if child.name().startswith("wandb-core"):
                    child.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if late.is_set():
            raise TimeoutError(f"it did not answer for {seconds:.0f} s") from error
        raise
    finally:
        timer.cancel()


def _kept_once(folder: Path, below: Path) -> Path:
    """A copy of `folder` that later starts leave alone, for an upload that may come later; one for each content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder)} {sha256(path)}\n".encode())
    kept = below / digest.hexdigest()[:16]
    if not kept.is_dir():
        unfinished = kept.with_suffix(".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(folder, unfinished)
        unfinished.rename(kept)
    return kept


def _sync(run: Any) -> str:
    return f"wandb sync {shlex.quote(run.settings.sync_dir)}"


def _reason(error: Exception) -> str:
    """The message in one line, without the values that settings hold, such as a key."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        wrong = error.errors(include_input=False, include_context=False, include_url=False)
        return "settings that it does not take: " + ", ".join(".".join(map(str, each["loc"])) for each in wrong)
    return without_secrets(one_line(error))
