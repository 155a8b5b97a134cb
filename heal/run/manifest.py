"""The manifest of a folder of results: its finished steps in order, each with the SHA-256 of its files."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heal.records import as_record, json_bytes, read_json
from heal.run.files import Files, sha256, write_atomic

MANIFEST = "steps.json"
JUDGE = "judge"  # the step that only sums up what the steps before it measured

_FORMAT_1 = "stages.json"  # what the manifest was called, with other steps in it: see `_from_format_1`
_SUMMARIES = ("metrics.json", "outputs.jsonl")


@dataclass(frozen=True)
class Finished:
    """A finished step: the digests of its files by name, and its wall time in seconds."""

    files: dict[str, str]
    seconds: float


class Manifest:
    """The finished steps of one folder, as they stand on disk."""

    def __init__(self, folder: Path):
        """Reads it; empty where nothing is finished yet.

        Raises:
            UserError: it is truncated, or not a manifest.
        """
        self._folder = folder
        path, old = folder / MANIFEST, folder / _FORMAT_1
        content: dict[str, Any] = read_json(path) if path.is_file() else {}
        if not path.is_file() and old.is_file():
            path, content = old, _from_format_1(read_json(old))
        self.steps = as_record(dict[str, Finished], content, path)

    def damaged(self, step: str) -> list[str]:
        """The files of a finished step that are missing, or not what it wrote."""
        files = self.steps[step].files
        return [name for name in files if not _is(self._folder / name, files[name])]

    def after(self, step: str) -> list[Finished]:
        """The steps that were finished after `step`; without the one that sums up, which is made again for nothing."""
        names = list(self.steps)
        return [self.steps[name] for name in names[names.index(step) + 1 :] if name != JUDGE]

    def finish(self, step: str, files: Files, seconds: float) -> None:
        """Writes a step's files, each whole, then marks the step finished; steps that came after it are undone."""
        for name, content in files.items():
            write_atomic(self._folder / name, content)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        names = list(self.steps)
        kept = names[: names.index(step)] if step in names else names
        # A file that is written again (the vector, with its c_star) is the later step's.
        self.steps = {name: _with(self.steps[name], digests) for name in kept}
        self.steps[step] = Finished(digests, round(seconds, 3))
        write_atomic(self._folder / MANIFEST, json_bytes({name: asdict(entry) for name, entry in self.steps.items()}))
        (self._folder / _FORMAT_1).unlink(missing_ok=True)


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _with(step: Finished, digests: Mapping[str, str]) -> Finished:
    return Finished(step.files | {name: digest for name, digest in digests.items() if name in step.files}, step.seconds)


def _from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """The steps of a folder whose last one measured and summed up at once: `evaluate` was `healed` and `judge`."""
    steps: dict[str, Any] = {}
    for name, entry in content.items():
        summaries = {file: digest for file, digest in entry["files"].items() if file in _SUMMARIES}
        measured = {file: digest for file, digest in entry["files"].items() if file not in summaries}
        steps["healed" if name == "evaluate" else name] = entry | {"files": measured}
        if summaries:
            steps[JUDGE] = {"files": summaries, "seconds": 0.0}
    return steps
