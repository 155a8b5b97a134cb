"""Files that are written whole or not at all."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from heal.parallel import first_alone

Files = dict[str, bytes]  # content by name, below the folder that they go into


@first_alone
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
        with named(path):
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # where nothing can be written, nothing can be removed either
            temporary.unlink(missing_ok=True)


def append_line(path: Path, line: bytes) -> None:
    """Appends a line and its end, whole or not at all."""
    with named(path), open(path, "ab", buffering=0) as file:
        before, left = file.tell(), line + b"\n"
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(before)
            raise


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError inside names `path`: a temporary name says little, and a full disk names no file at all."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def clear_temporary(path: Path) -> None:
    """Removes what killed processes left under temporary names."""
    for leftover in path.rglob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def holds(path: Path, digest: str) -> bool:
    """Whether `path` is a file with that SHA-256."""
    return path.is_file() and sha256(path) == digest


def sha256(path: Path) -> str:
    """The digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
