"""Puts an export in its place only when it is complete, and never over a folder that is not an export."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from heal.errors import UserError
from heal.export.factors import ExportError
from heal.models.agreement import Agreement
from heal.records import as_record, json_bytes, read_json
from heal.run.files import holds, sha256
from heal.run.folder import EXPORT_RECORD, Exported

CARD = "README.md"  # of an export; the one file that people edit
NOTICED = 0.1  # nats per token at p95: a tenth of what a round's dose spends by default
Record = dict[str, Any]  # of an export, whose keys are those of its kind


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        path: its folder.
        agreement: with the student at the same gate, over the probe prompts.
        rank: of the adapter; None for a merged model.
        lost: relative Frobenius error of a truncated adapter; None when exact.
        bytes: size of the folder.
        four_bit: whether the student's base was in 4 bits.
    """

    path: Path
    agreement: Agreement
    rank: int | None = None
    lost: float | None = None
    bytes: int = 0
    four_bit: bool = False

    @property
    def notice(self) -> str | None:
        """What to know of an export that is not the student: what its KL comes from, and what to do; None if it is."""
        if self.agreement.p95 <= NOTICED:
            return None
        said = f"the export is not the student: p95 KL {self.agreement.p95:.2g} nats per token (above {NOTICED:g})"
        if self.lost is not None:
            return f"{said}, because its update was truncated; raise rank=..., or leave it out"
        if self.four_bit and self.rank is None:
            return (
                f"{said}, because the update was trained over the base's weights in 4 bits and is merged into the "
                "unquantised ones; format=adapter is exact, on the base in 4 bits"
            )
        return f"{said}, because of rounding in 16 bits; model.dtype=float32 is exact, in a run of its own"


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
