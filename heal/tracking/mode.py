"""In which mode W&B runs: what the recipe says, or else what the user told W&B itself.

It is asked before W&B starts, so that nobody is asked for a key and no server is waited for.
"""

import netrc
import os
import re
import socket
from pathlib import Path
from threading import Thread
from typing import Any, Literal
from urllib.parse import urlparse

from heal.errors import UserError

Mode = Literal["auto", "online", "offline", "disabled"]

_PROBE_SECONDS = 3.0
_EARLIER = {"api.forge.coreweave.com": "api.wandb.ai"}  # W&B's cloud: keys under its earlier name still count
_ID = 64  # characters of a run's id that W&B takes


def resolve_mode(mode: Mode) -> Literal["online", "offline", "disabled"]:
    """What W&B will run in; its own settings count when the recipe leaves it open (`WANDB_MODE`, `wandb offline`).

    Raises:
        UserError: the environment holds a mode, a server or a key that W&B does not take.
    """
    if mode != "auto":
        return mode
    settings = user_settings()
    if settings.mode == "disabled":
        return "disabled"
    if settings.mode in ("offline", "dryrun"):
        return "offline"
    return "online" if _has_key(settings) and _reachable(settings.base_url) else "offline"


def user_settings() -> Any:
    """W&B's settings as its settings files (this folder's too) and the environment have them.

    Raises:
        UserError: the environment holds a value that W&B does not take; names its variable, not the value.
    """
    import wandb

    settings = wandb.Settings(silent=True)
    folder = os.path.expanduser(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb")
    settings.settings_system = os.path.join(folder, "settings")
    settings.update_from_system_settings()
    for name in ("WANDB_MODE", "WANDB_BASE_URL", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_RUN_ID"):
        value = os.environ.get(name)
        try:
            if value:
                settings.update_from_env_vars({name: value})
        except (wandb.errors.Error, ValueError) as error:  # which may quote the key
            raise _not_taken(name) from error
    if len(settings.run_id or "") > _ID:  # W&B itself notices when the first table is logged
        raise _not_taken("WANDB_RUN_ID")
    return settings


def without_secrets(text: str) -> str:
    """The text without the key that the environment holds, and without what stands before the host of an address."""
    key = os.environ.get("WANDB_API_KEY", "").strip()
    return re.sub(r"//[^/@\s]+@", "//", text.replace(key, "...") if key else text)


def _not_taken(name: str) -> UserError:
    return UserError(f"W&B does not take {name} as the environment has it; correct that, or set tracking.mode=disabled")


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
    """Whether the server takes a connection within seconds; a resolver of names that hangs does not count as one."""
    parts = urlparse(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    answered: list[bool] = []

    def probe() -> None:
        try:
            socket.create_connection((parts.hostname or "", port), timeout=_PROBE_SECONDS).close()
        except OSError:
            return
        answered.append(True)

    thread = Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return bool(answered)


def own_folders(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Where W&B keeps its files (runs, staged artifacts, cache), by variable, and what to warn of.

    A folder that the user chose stays, if it can be written; every other one lies in `folder`, which is named `wandb`.
    """
    inside = {
        "WANDB_DIR": "..",
        "WANDB_DATA_DIR": "data",
        "WANDB_CACHE_DIR": "cache",
        "WANDB_ARTIFACT_DIR": "artifacts",
    }
    if os.path.expanduser("~") == "~":  # no home: W&B looks for its settings there
        inside["WANDB_CONFIG_DIR"] = "config"
    places, warnings = {}, []
    for name, where in inside.items():
        chosen = os.environ.get(name)
        if chosen and _writable(Path(chosen).expanduser()):
            continue
        places[name] = os.path.abspath(folder / where)
        if chosen:
            warnings.append(f"{name}={chosen} cannot be written; W&B's files go below {folder}")
    return places, warnings


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
