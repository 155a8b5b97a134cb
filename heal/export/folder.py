"""Puts an export in its place only when it is complete, and never over a folder that is not an export."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from heal.errors import UserError
from heal.export.exportable import Facts
from heal.export.factors import ExportError
from heal.models.agreement import Agreement
from heal.records import as_record, json_bytes, read_json
from heal.run.facts import Exported
from heal.run.files import holds, sha256
from heal.run.folder import EXPORT_RECORD

FAINT = 0.5  # of the update, above which the rounding of a merged model is warned of
CARD = "README.md"  # of an export; the one file that people edit
Record = dict[str, Any]  # of an export, whose keys are those of its kind


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        path: its folder.
        facts: what it came to.
        bytes: size of the folder.
    """

    path: Path
    facts: Facts
    bytes: int = 0

    @property
    def agreement(self) -> Agreement:
        return self.facts.agreement

    @property
    def rank(self) -> int | None:
        return self.facts.rank

    @property
    def lost(self) -> float | None:
        return self.facts.lost

    @property
    def notices(self) -> list[str]:
        """What to know of it, a line each."""
        base, kept = self.facts.base.notice, self.facts.kept
        if self.rank is not None:
            return [base] if base else []
        if kept is None or kept.error <= FAINT:
            return []
        finer = ", dtype=float16 rounds 8 times finer" if self.facts.dtype == torch.bfloat16 else ""
        return [
            f"{self.facts.weights} rounds the weights by {kept.error:.2g} times the update; dtype=float32 and "
            f"format=adapter are exact{finer}"
        ]


def refuse_distant(facts: Facts, max_kl: float, four_bit: bool) -> None:
    """Raises ExportError for an export too far from the student: where its KL comes from, and what to do.

    Args:
        facts: what it came to.
        max_kl: the largest p95 that is accepted, nats per token.
        four_bit: whether the student's base was in 4 bits.
    """
    if facts.agreement.p95 <= max_kl:
        return
    said = f"the export is not the student: {facts.agreement} (p95 above max_kl={max_kl:g})"
    otherwise = "max_kl=... writes it all the same"
    if facts.lost is not None:
        raise ExportError(f"{said}, because its update was truncated; raise rank=..., or leave it out; {otherwise}.")
    if facts.rank is not None:
        raise ExportError(f"{said}, because of rounding in {facts.weights}; {otherwise}.")
    if four_bit:
        raise ExportError(
            f"{said}, because the update was trained over the base's weights in 4 bits and is merged into the "
            f"unquantised ones; format=adapter is exact, on the base in 4 bits; {otherwise}."
        )
    if facts.quant is not None:
        raise ExportError(f"{said}, because of rounding in {facts.quant}; quant=q8_0 or f16 is nearer; {otherwise}.")
    kept = "" if facts.kept is None else f": {facts.kept}"
    raise ExportError(
        f"{said}, because of rounding in {facts.weights}{kept}; use dtype=float32 or format=adapter; {otherwise}."
    )


def check_place(path: Path) -> None:
    """Raises UserError unless `path` is free, or holds an earlier export (which a new one may replace)."""
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path}: a file is in the way; give another out=...")
    if any(path.iterdir()) and not (path / EXPORT_RECORD).is_file():
        raise UserError(f"{path}: the folder holds something that is not an export of heal; give another out=...")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that replaces `path` when the context ends without an error.

    On an error it is removed and `path` stays as it was.

    Raises:
        UserError: see `check_place`.
        ExportError: the disk is full, or the place cannot be written to.
    """
    check_place(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    before = path.with_name(f".{path.name}.{os.getpid()}.before.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rename(before)
        try:
            temporary.rename(path)
        except OSError:
            if before.exists():
                before.rename(path)
            raise
    except Exception as error:
        if not _of_the_system(error):
            raise
        raise ExportError(f"{path}: the export could not be written ({' '.join(str(error).split())}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def _of_the_system(error: Exception) -> bool:
    """Whether a file could not be written; tokenizers raises a bare Exception with the system's number in its text."""
    return isinstance(error, OSError | SafetensorError) or "(os error " in str(error)


def write_record(folder: Path, **facts: Any) -> None:
    """Writes a file that describes the export, with the SHA-256 of all its files but the card.

    It comes last: a later export may replace a folder that has one.
    """
    names = sorted(path.name for path in folder.iterdir() if path.name not in (CARD, EXPORT_RECORD))
    files = {name: sha256(folder / name) for name in names}
    (folder / EXPORT_RECORD).write_bytes(json_bytes(facts | {"files": files}))


def read_record(folder: Path) -> Record:
    """What `write_record` wrote.

    Raises:
        UserError: there is none, or it is damaged.
    """
    content = read_json(folder / EXPORT_RECORD, "export again")
    if not isinstance(content, dict):
        raise UserError(f"{folder / EXPORT_RECORD}: not the record of an export; export again")
    return content


def check_whole(folder: Path) -> None:
    """Raises UserError where a file of the export in `folder` is not what was written."""
    if not (folder / EXPORT_RECORD).is_file():
        return
    for name, digest in as_record(Exported, read_record(folder), folder / EXPORT_RECORD).files.items():
        if not holds(folder / name, digest):
            raise UserError(f"{folder / name}: missing or not what was exported; export again")


def size(folder: Path) -> int:
    """Bytes of the files in `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
