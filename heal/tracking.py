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
from heal.run.folder import Events

Mode = Literal["auto", "online", "offline", "disabled"]

_PROBE_SECONDS = 3.0
_INIT_SECONDS = 15.0
_ARTIFACT_NAME = 128  # characters that W&B takes
_EARLIER = {"api.forge.coreweave.com": "api.wandb.ai"}  # W&B's cloud: keys under its earlier name still count


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
            UserError: it does, and the user insisted on online; or it does not start offline either.
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
                raise UserError(
                    f"tracking.mode=online: W&B does not start ({_reason(error)}); log in with `wandb login`, or leave "
                    "it to tracking.mode=auto"
                ) from error
        self.mode = "offline"
        try:
            return wandb.init(mode=self.mode, settings=settings, **arguments)
        except wandb.errors.Error as error:
            raise UserError(
                f"W&B does not start even offline ({_reason(error)}); tracking.mode=disabled leaves it out"
            ) from error

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


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def resolve_mode(mode: Mode) -> Literal["online", "offline", "disabled"]:
    """What W&B will run in; `WANDB_MODE` counts when the recipe leaves it open.

    Raises:
        UserError: the environment holds a server or a key that W&B does not take.
    """
    if mode != "auto":
        return mode
    asked = os.environ.get("WANDB_MODE", "")
    if asked in ("disabled", "offline"):
        return "disabled" if asked == "disabled" else "offline"
    settings = _settings()
    return "online" if _has_key(settings) and _reachable(settings.base_url) else "offline"


def _settings() -> Any:
    """W&B's settings with the server and the key that its settings files and the environment name."""
    import wandb

    settings = wandb.Settings(silent=True)
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    settings.settings_system = str(folder / "settings")
    settings.update_from_system_settings()
    given = {name: os.environ[name] for name in ("WANDB_BASE_URL", "WANDB_API_KEY") if os.environ.get(name)}
    try:
        settings.update_from_env_vars(given)
    except (wandb.errors.Error, ValueError) as error:  # which may quote the key
        raise UserError(
            f"W&B does not take {' and '.join(given)} as the environment has it; correct that, or set "
            "tracking.mode=disabled"
        ) from error
    return settings


def _has_key(settings: Any) -> bool:
    """Whether W&B finds a key without asking: a given one, or that of its server and port in the netrc file."""
    if settings.api_key:
        return True
    named = os.environ.get("NETRC")
    places = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    path = next(filter(Path.is_file, places), None)
    if path is None:
        return False
    try:
        known = netrc.netrc(str(path))
    except (netrc.NetrcParseError, OSError):
        return False
    server = urlparse(settings.base_url).netloc
    entries = (known.authenticators(name) for name in (server, _EARLIER.get(server, server)))
    return any(entry and entry[2] for entry in entries)


def _reachable(url: str) -> bool:
    parts = urlparse(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_PROBE_SECONDS).close()
    except OSError:
        return False
    return True
