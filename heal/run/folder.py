"""A run on disk: stages are written whole or not at all, checked when read, and continued (SPEC section 9)."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from heal.config import Recipe
from heal.errors import UserError
from heal.recipe import flatten, from_mapping, read_yaml, to_mapping, to_yaml
from heal.records import json_bytes, read_json

STAGES = ("extract", "calibrate", "generate", "steered", "heal", "evaluate")
MANIFEST = "stages.json"
EXPORT_RECORD = "heal_export.json"

# Keys that may change between two starts of one run: they do not change what it computes.
FREE_KEYS = ("run.rounds", "run.stop_", "run.root", "run.name", "tracking.", "compute.")
# What a start that was killed before the run began may have left in its folder.
UNBEGUN = (".lock", "facts.json", ".facts.json.*.tmp", ".recipe.yaml.*.tmp")
FREE_FACTS = frozenset({"batching"})  # sizes that were measured: reused, but free to change


class RunFolder:
    """`runs/<name>/`: recipe, events, one folder a round, report.

    Each folder of results has a manifest of its finished stages with the SHA-256 of their files. A
    stage counts as done when the manifest names it and its files are what it wrote.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def adapter(self) -> Path:
        """The adapter that the run exports at its end."""
        return self.path / "export" / "adapter"

    def exported(self) -> list[int]:
        """The rounds that are in that adapter, as its record says; empty where there is none."""
        record = self.adapter / EXPORT_RECORD
        return read_json(record).get("rounds", []) if record.is_file() else []

    @property
    def baseline(self) -> Path:
        """Results of base, prompted and opposite, measured once."""
        return self.path / "baseline"

    @property
    def doses(self) -> Path:
        """Results of base under the first round's vector, measured once."""
        return self.path / "doses"

    def round(self, index: int) -> Path:
        return self.path / "rounds" / f"{index:02d}"

    def rounds(self) -> list[int]:
        """The rounds whose every stage is done, from 0 up to the first that is not."""
        done: list[int] = []
        stages = self.stages()
        while all(self.finished(self.round(len(done)), stage) for stage in stages):
            done.append(len(done))
        return done

    def stages(self) -> tuple[str, ...]:
        """The stages of a round of this run, in order."""
        steered = not (self.path / "recipe.yaml").is_file() or self.recipe().evaluation.steered
        return tuple(stage for stage in STAGES if steered or stage != "steered")

    def recipe(self) -> Recipe:
        """The run's recipe; UserError when the folder is no run."""
        path = self.path / "recipe.yaml"
        if not path.is_file():
            raise UserError(f"{self.path}: not a run folder (no recipe.yaml)")
        return from_mapping(read_yaml(path), str(path))

    def refuse_other(self, recipe: Recipe, facts: dict[str, Any]) -> None:
        """Compares with what the folder holds, if it holds a run; writes nothing.

        Args:
            recipe: the resolved recipe.
            facts: what the recipe leaves open and the files depend on (the resolved dtype, the
                trait's content, digests of other files).

        Raises:
            UserError: the folder belongs to another recipe (shows what differs) or is no run.
        """
        recipe_file = self.path / "recipe.yaml"
        if not recipe_file.is_file():
            found = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
            if not all(any(fnmatch(name, pattern) for pattern in UNBEGUN) for name in found):
                raise UserError(f"{self.path}: the folder holds something that is not a run; choose another run.name")
            return
        before = flatten(read_yaml(recipe_file), str(recipe_file))
        now = flatten(to_mapping(recipe), "recipe")
        differing = [
            f"{name}: {before.get(name)} there, {now.get(name)} asked"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and not name.startswith(FREE_KEYS)
        ]
        known = self.facts()
        differing += [
            f"{name}: changed since the run started"
            for name in facts.keys() - FREE_FACTS
            if known.get(name) != facts[name]
        ]
        if differing:
            raise UserError(
                f"{self.path} is a run of another recipe ({'; '.join(differing)}). "
                "Give run.name=... to start a new one, or the same settings to continue."
            )

    def start(self, recipe: Recipe, facts: dict[str, Any]) -> bool:
        """Makes the folder, or continues it; True when it continues. See `refuse_other`."""
        self.refuse_other(recipe, facts)
        continued = (self.path / "recipe.yaml").is_file()
        write_atomic(self.path / "facts.json", json_bytes(facts))
        write_atomic(self.path / "recipe.yaml", to_yaml(recipe).encode())
        return continued

    def facts(self) -> dict[str, Any]:
        """What `start` recorded beside the recipe; empty before it.

        Raises:
            UserError: the folder is a run that has lost them.
        """
        path = self.path / "facts.json"
        if not path.is_file() and (self.path / "recipe.yaml").is_file():
            raise UserError(f"{self.path}: facts.json is missing; put it back, or start the run anew elsewhere")
        return read_json(path) if path.is_file() else {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process.

        Raises:
            UserError: another process runs in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{self.path}: another process is running in this folder") from error
            yield

    def finished(self, folder: Path, stage: str) -> bool:
        """Whether `stage` is done in `folder` and its files are as it wrote them.

        A last stage with a damaged file is not done (it will be done again), nor are those before it
        that wrote the same file.

        Raises:
            UserError: a damaged file has later results built on it.
        """
        manifest = _manifest(folder)
        if stage not in manifest:
            return False
        for name, digest in manifest[stage]["files"].items():
            path = folder / name
            if path.is_file() and sha256(path) == digest:
                continue
            later = list(manifest)[list(manifest).index(stage) + 1 :]
            if all(name in manifest[other]["files"] for other in later) and not self._later(folder):
                return False
            raise UserError(
                f"{path}: missing or not what the run wrote, and later results are built on it. "
                f"Put it back, or delete {folder.name} and every later round to do them again."
            )
        return True

    def finish(self, folder: Path, stage: str, files: dict[str, bytes], seconds: float) -> None:
        """Writes a stage's files, each whole, then marks the stage done."""
        for name, content in files.items():
            write_atomic(folder / name, content)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        before = _manifest(folder)
        order = list(before)
        kept = order[: order.index(stage)] if stage in before else order  # what came after it is undone
        manifest = {name: before[name] for name in kept}
        for entry in manifest.values():  # a file written again: the vector, with its c_star
            entry["files"] |= {name: digest for name, digest in digests.items() if name in entry["files"]}
        manifest[stage] = {"files": digests, "seconds": round(seconds, 3)}
        write_atomic(folder / MANIFEST, json_bytes(manifest))

    def seconds(self, folder: Path) -> dict[str, float]:
        """Wall time by finished stage."""
        return {stage: float(entry["seconds"]) for stage, entry in _manifest(folder).items()}

    def _later(self, folder: Path) -> bool:
        """Whether results exist that were computed after those in `folder`."""
        if folder == self.baseline:
            return bool(_manifest(self.round(0)).keys() & {"steered", "heal"})
        return any(other > folder and _manifest(other) for other in folder.parent.iterdir() if other.is_dir())


class Events:
    """`events.jsonl`: one line an event, append-only; what W&B also gets."""

    def __init__(self, path: Path):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_partial_line(path)

    def write(self, kind: str, content: dict[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 3), "kind": kind} | content, default=str)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def _drop_partial_line(path: Path) -> None:
    """Cuts what a killed process left of its last line."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    return read_json(path) if path.is_file() else {}


def write_files(folder: Path, files: Mapping[str, bytes]) -> str:
    """Writes each file whole into `folder`, which is made if need be; their paths, one a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(folder / name, content)
    return "\n".join(str(folder / name) for name in files)


def write_atomic(path: Path, content: bytes) -> None:
    """Writes to a temporary name, syncs, renames: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # the temporary name says little, and a full disk names no file at all
        raise
    finally:
        temporary.unlink(missing_ok=True)


def clear_temporary(path: Path) -> None:
    """Removes what killed processes left under temporary names."""
    for leftover in path.rglob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
