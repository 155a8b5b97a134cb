"""wandb: Weights & Biases: curves, one value a round, tables, figures and the adapter.

It never asks for a key and never waits long for a server: without them it writes offline files, for `wandb sync`.
Nor does it stop a run: what W&B cannot do is one warning, after which it is off.
"""

import netrc
import os
import re
import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from heal.errors import UserError
from heal.healing.log import StepLog
from heal.tracking.tracker import TrackedRun, Tracker, rounds_trained

Mode = Literal["auto", "online", "offline", "disabled"]

_PROBE_SECONDS = 3.0
_INIT_SECONDS = 15.0
_FINISH_SECONDS = 600.0  # for the upload of what is left at the end
_ARTIFACT_NAME = 128  # characters that W&B takes
_EARLIER = {"api.forge.coreweave.com": "api.wandb.ai"}  # W&B's cloud: keys under its earlier name still count


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
        self._folders = _folders(run.folder / "wandb")
        os.environ.update(self._folders)
        try:
            self.state = mode = resolve_mode(run.settings.mode)
            if mode != "disabled":
                self._start(run, mode)
        except Exception as error:  # whatever W&B raises: it uses the system, its own process and a server
            if run.settings.mode == "online":
                self._forget_folders()
                raise UserError(
                    f"tracking.mode=online: W&B does not start ({_reason(error)}); log in with `wandb login`, or leave "
                    "it to tracking.mode=auto"
                ) from error
            self._give_up(error)
        if self._run is None:
            self._forget_folders()

    def _start(self, run: TrackedRun, mode: Literal["online", "offline"]) -> None:
        self._run = self._open(
            mode,
            run.settings.mode == "online",
            project=run.settings.project,
            entity=run.settings.entity,
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
        """A W&B run; offline where the server refuses or is slow, unless online is insisted on."""
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

    def _tell(self, act: Callable[[Any], object]) -> None:
        """Does something with W&B's run; if W&B fails, it is off from then on, and one warning says so."""
        if self._run is None:
            return
        try:
            act(self._run)
        except Exception as error:  # see __init__
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        run, self._run, self.state = self._run, None, "off"
        later = f"; or send only what it wrote until now: {_sync(run)}" if run is not None else ""
        self._console.warn(
            f"W&B is off ({_reason(error)}); events.jsonl has everything, and the same command again tells W&B all of "
            f"it{later}"
        )
        self._forget_folders()
        import wandb

        with suppress(Exception):  # its process may have died, which is what the warning says; the rest ends here
            wandb.teardown(exit_code=1)

    def _forget_folders(self) -> None:
        for name in self._folders:
            os.environ.pop(name, None)
        self._folders = {}

    def step_log(self, number: int, epochs: int, log: StepLog, new: bool = True) -> None:
        curves = {name: value for name, value in log.flat().items() if "/" in name}
        row = {"rounds_trained": rounds_trained(number, epochs, log)} | curves
        self._tell(lambda run: run.log(row))

    def round(self, number: int, values: Mapping[str, float], new: bool = True) -> None:
        row = {"round": number} | {f"round/{name}": value for name, value in values.items()}
        self._tell(lambda run: run.log(row))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table under a key of its own (a table logged twice under one key shows the first rows only)."""
        if self._run is None or not rows:
            return
        import wandb

        columns = list(rows[0])
        data = [[row[column] for column in columns] for row in rows]
        self._tell(lambda run: run.log({name: wandb.Table(columns=columns, data=data)}))

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
                artifact.add_dir(str(folder))
                run.log_artifact(artifact)

            self._tell(keep)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Waits for what is left to be sent, for minutes at most; offline, a line says how to send it later."""
        self._tell(lambda run: (run.summary.update(dict(summary)), run.finish()))
        if self._run is not None and self.state == "offline":
            self._console.say(f"W&B was offline; send it later by: {_sync(self._run)}")
        self._run = None
        self._forget_folders()


def _folders(folder: Path) -> dict[str, str]:
    """Where W&B keeps its other files (staged artifacts, cache), by variable, if neither the user nor a run said so."""
    inside = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache"}
    if os.path.expanduser("~") == "~":  # no home: W&B looks for its settings there
        inside["WANDB_CONFIG_DIR"] = "config"
    return {name: str((folder / where).absolute()) for name, where in inside.items() if not os.environ.get(name)}


def _sync(run: Any) -> str:
    return f"wandb sync {shlex.quote(run.settings.sync_dir)}"


def _reason(error: Exception) -> str:
    """The message in one line, without the values that settings hold, such as a key."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        wrong = error.errors(include_input=False, include_context=False, include_url=False)
        return "settings that it does not take: " + ", ".join(".".join(map(str, each["loc"])) for each in wrong)
    return " ".join(str(error).split()) or type(error).__name__


def resolve_mode(mode: Mode) -> Literal["online", "offline", "disabled"]:
    """What W&B will run in; its own settings count when the recipe leaves it open (`WANDB_MODE`, `wandb offline`).

    Raises:
        UserError: the environment holds a mode, a server or a key that W&B does not take.
    """
    if mode != "auto":
        return mode
    settings = _settings()
    if settings.mode == "disabled":
        return "disabled"
    if settings.mode in ("offline", "dryrun"):
        return "offline"
    return "online" if _has_key(settings) and _reachable(settings.base_url) else "offline"


def _settings() -> Any:
    """W&B's settings with the mode, server and key of its settings files (this folder's too) and the environment."""
    import wandb

    settings = wandb.Settings(silent=True)
    folder = os.path.expanduser(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb")
    settings.settings_system = os.path.join(folder, "settings")
    settings.update_from_system_settings()
    names = ("WANDB_MODE", "WANDB_BASE_URL", "WANDB_API_KEY")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
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
    places = map(os.path.expanduser, [named] if named else ["~/.netrc", "~/_netrc"])
    path = next(filter(os.path.isfile, places), None)
    if path is None:
        return False
    try:
        known = netrc.netrc(path)
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
