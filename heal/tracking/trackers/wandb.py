"""wandb: Weights & Biases: curves, one value a round, tables, figures and the adapter.

It never asks for a key and never waits long for a server: without them it writes offline files, for `wandb sync`.
"""

import netrc
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from heal.errors import UserError
from heal.healing.log import StepLog
from heal.tracking.tracker import TrackedRun, Tracker, rounds_trained

Mode = Literal["auto", "online", "offline", "disabled"]

_PROBE_SECONDS = 3.0
_INIT_SECONDS = 15.0
_ARTIFACT_NAME = 128  # characters that W&B takes
_EARLIER = {"api.forge.coreweave.com": "api.wandb.ai"}  # W&B's cloud: keys under its earlier name still count


def start(run: TrackedRun) -> "WandbTracker":
    """Tracking with the mode, project and entity of the recipe's tracking section."""
    return WandbTracker(run)


class WandbTracker(Tracker):
    """One W&B run a process; its files go into `wandb/` below the run's folder.

    Attributes:
        state: what W&B runs in: online, offline or disabled.
    """

    def __init__(self, run: TrackedRun):
        """Starts W&B.

        Raises:
            UserError: it does not start, or a server, key or name that it does not take.
        """
        settings = run.settings
        self.state = mode = resolve_mode(settings.mode)
        self._run: Any = None
        if mode == "disabled":
            return
        self._run = self._open(
            mode,
            settings.mode == "online",
            project=settings.project,
            entity=settings.entity,
            name=run.name,
            group=run.name,
            config=dict(run.recipe),
            dir=str(run.folder),
        )
        self._run.define_metric("round")
        self._run.define_metric("round/*", step_metric="round")
        self._run.define_metric("rounds_trained")
        for curve in ("train/*", "eval/*"):
            self._run.define_metric(curve, step_metric="rounds_trained")

    def _open(self, mode: Literal["online", "offline"], insisted: bool, **arguments: Any) -> Any:
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
            return wandb.init(mode=mode, settings=settings, **arguments)
        except wandb.errors.Error as error:
            if insisted:
                raise UserError(
                    f"tracking.mode=online: W&B does not start ({_reason(error)}); log in with `wandb login`, or leave "
                    "it to tracking.mode=auto"
                ) from error
        self.state = "offline"
        try:
            return wandb.init(mode="offline", settings=settings, **arguments)
        except wandb.errors.Error as error:
            raise UserError(
                f"W&B does not start even offline ({_reason(error)}); tracking.mode=disabled leaves it out"
            ) from error

    def step_log(self, number: int, epochs: int, log: StepLog, new: bool = True) -> None:
        if self._run is not None:
            curves = {name: value for name, value in log.flat().items() if "/" in name}
            self._run.log({"rounds_trained": rounds_trained(number, epochs, log)} | curves)

    def round(self, number: int, values: Mapping[str, float], new: bool = True) -> None:
        if self._run is not None:
            self._run.log({"round": number} | {f"round/{name}": value for name, value in values.items()})

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
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

    def finish(self, summary: Mapping[str, Any]) -> None:
        if self._run is not None:
            self._run.summary.update(dict(summary))
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
    wanted = os.environ.get("WANDB_MODE", "")
    if wanted in ("disabled", "offline"):
        return "disabled" if wanted == "disabled" else "offline"
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
