"""Events: one line each in events.jsonl, and the same to Weights & Biases when it is on."""

import netrc
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from heal.errors import UserError
from heal.runfolder import Events

Mode = Literal["auto", "online", "offline", "disabled"]

_PROBE_SECONDS = 3.0
_INIT_SECONDS = 15.0
_ARTIFACT_NAME = 128  # characters that W&B takes


class Tracker:
    """Writes what happens. W&B gets curves, one value a round, tables, figures and the adapter.

    Attributes:
        mode: what W&B runs in: online, offline or disabled.
    """

    def __init__(
        self,
        events: Events,
        folder: Path,
        mode: Mode,
        project: str,
        entity: str | None,
        name: str,
        config: dict[str, Any],
    ):
        """Starts tracking; never asks for a key and never waits long for a server.

        Args:
            events: the run's event log.
            folder: the run folder; W&B's files go into `wandb/` below it.
            mode: asked for; `auto` is online when a key and the server are there, else offline.
            project, entity, name: as W&B has them.
            config: the resolved recipe.
        """
        self._events = events
        self.mode = resolve_mode(mode)
        self._run: Any = None
        if self.mode != "disabled":
            self._run = self._open(
                mode == "online", project=project, entity=entity, name=name, group=name, config=config, dir=str(folder)
            )
        self._events.write("start", {"config": config, "wandb": self.mode})
        if self._run is None:
            return
        self._run.define_metric("round")
        self._run.define_metric("round/*", step_metric="round")
        self._run.define_metric("rounds_trained")
        for curve in ("train/*", "eval/*"):
            self._run.define_metric(curve, step_metric="rounds_trained")

    def _open(self, insisted: bool, **arguments: Any) -> Any:
        """A W&B run; offline when the server refuses the key or does not answer in time.

        Raises:
            UserError: it does, and the user insisted on online.
        """
        os.environ["WANDB_SILENT"] = "true"
        import wandb

        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            init_timeout=_INIT_SECONDS,
        )
        try:
            return wandb.init(mode=self.mode, settings=settings, **arguments)
        except wandb.errors.Error as error:
            if insisted:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UserError(
                    f"tracking.mode=online: W&B does not start ({reason}); log in with `wandb login`, or leave it "
                    "to tracking.mode=auto"
                ) from error
        self.mode = "offline"
        return wandb.init(mode=self.mode, settings=settings, **arguments)

    def event(self, kind: str, content: dict[str, Any]) -> None:
        """Something worth a line in events.jsonl alone."""
        self._events.write(kind, content)

    def training(self, round_index: int, epochs: int, entry: dict[str, float], new: bool = True) -> None:
        """A training or validation step; its axis counts rounds, a fraction within each.

        What is not new was written to events.jsonl by an earlier process, but this W&B run lacks it.
        """
        content = {"rounds_trained": round_index + entry["epoch"] / epochs} | entry
        if new:
            self._events.write("training", {"round": round_index} | content)
        if self._run is not None:
            self._run.log({name: value for name, value in content.items() if "/" in name or name == "rounds_trained"})

    def round(self, round_index: int, values: dict[str, float], new: bool = True) -> None:
        """One value of each name for a finished round; see `training` for `new`."""
        if new:
            self._events.write("round", {"round": round_index} | values)
        if self._run is not None:
            self._run.log({"round": round_index} | {f"round/{name}": value for name, value in values.items()})

    def table(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """A table under a key of its own (a table logged twice under one key shows the first rows only)."""
        if self._run is None or not rows:
            return
        import wandb

        columns = list(rows[0])
        self._run.log({name: wandb.Table(columns=columns, data=[[row[column] for column in columns] for row in rows])})

    def figure(self, name: str, path: Path) -> None:
        if self._run is not None:
            import wandb

            self._run.log({name: wandb.Image(str(path))})

    def artifact(self, name: str, kind: str, folder: Path) -> None:
        """A folder of files, kept as an artifact; of its name, what W&B does not allow is replaced or cut off."""
        if self._run is not None:
            import wandb

            artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[-_ARTIFACT_NAME:], type=kind)
            artifact.add_dir(str(folder))
            self._run.log_artifact(artifact)

    def finish(self, summary: dict[str, Any]) -> None:
        self._events.write("end", summary)
        if self._run is not None:
            self._run.summary.update(summary)
            self._run.finish()
            self._run = None


def resolve_mode(mode: Mode) -> Literal["online", "offline", "disabled"]:
    """What W&B will run in; `WANDB_MODE` counts when the recipe leaves it open."""
    if mode != "auto":
        return mode
    asked = os.environ.get("WANDB_MODE", "")
    if asked in ("disabled", "offline"):
        return "disabled" if asked == "disabled" else "offline"
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return "online" if _has_key(url) and _reachable(url) else "offline"


def _has_key(url: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    for path in (os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"):
        if path and Path(path).is_file():
            try:
                return netrc.netrc(str(path)).authenticators(urlparse(url).hostname or "") is not None
            except netrc.NetrcParseError:
                return False
    return False


def _reachable(url: str) -> bool:
    parts = urlparse(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_PROBE_SECONDS).close()
    except OSError:
        return False
    return True
