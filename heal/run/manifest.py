"""The manifest of a folder of results: its finished steps in order, each with the SHA-256 of its files."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from heal.errors import UserError
from heal.records import as_record, digest, json_bytes, read_json
from heal.run.files import Files, holds, write_atomic

MANIFEST = "steps.json"
JUDGE = "judge"  # the step that only sums up what the steps before it measured

_FORMAT_1 = "stages.json"  # what the manifest was called, with other steps in it: see `_from_format_1`
_REMEDY = "delete it to do the steps of its folder again"
SUMMARIES = ("metrics.json", "outputs.jsonl")  # the files of JUDGE


@dataclass(frozen=True)
class Finished:
    """A finished step.

    Attributes:
        files: their SHA-256 by name.
        seconds: wall time.
        seal: the SHA-256 of this entry and of all before it; None in a manifest of an earlier version.
    """

    files: dict[str, str]
    seconds: float
    seal: str | None = None


class Manifest:
    """The finished steps of one folder, as they stand on disk."""

    def __init__(self, folder: Path):
        """Reads it; empty where nothing is finished yet.

        Raises:
            UserError: it is truncated, not a manifest, or not what the run wrote.
        """
        self._folder = folder
        path, old = folder / MANIFEST, folder / _FORMAT_1
        self.steps: dict[str, Finished] = {}
        if path.exists():  # a folder in its place is refused before any step is done again
            self.steps = _read(path)
        elif old.is_file():
            self.steps = _from_format_1(_read(old))

    def damaged(self, step: str) -> list[str]:
        """The files of a finished step that are missing, or not what it wrote."""
        files = self.steps[step].files
        return [name for name in files if not holds(self._folder / name, files[name])]

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
        self.steps = _sealed(self.steps)
        write_atomic(self._folder / MANIFEST, json_bytes({name: asdict(entry) for name, entry in self.steps.items()}))
        (self._folder / _FORMAT_1).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Finished]:
    """The finished steps that a manifest names, at least one."""
    steps = as_record(dict[str, Finished], read_json(path, _REMEDY), path)
    if not steps or (any(entry.seal for entry in steps.values()) and steps != _sealed(steps)):
        raise UserError(f"{path}: damaged, not what the run wrote; {_REMEDY}")
    return steps


def _sealed(steps: Mapping[str, Finished]) -> dict[str, Finished]:
    """The same steps in the same order, each with its seal."""
    sealed, seal = {}, ""
    for name, entry in steps.items():
        seal = digest([seal, name, entry.files, entry.seconds])
        sealed[name] = replace(entry, seal=seal)
    return sealed


def _with(step: Finished, digests: Mapping[str, str]) -> Finished:
    return replace(step, files=step.files | {name: new for name, new in digests.items() if name in step.files})


def _from_format_1(stages: Mapping[str, Finished]) -> dict[str, Finished]:
    """The steps of a folder whose last one measured and summed up at once: `evaluate` was `healed` and `judge`."""
    steps: dict[str, Finished] = {}
    for name, entry in stages.items():
        summaries = {file: known for file, known in entry.files.items() if file in SUMMARIES}
        measured = {file: known for file, known in entry.files.items() if file not in summaries}
        steps["healed" if name == "evaluate" else name] = replace(entry, files=measured)
        if summaries:
            steps[JUDGE] = Finished(summaries, 0.0)
    return steps
