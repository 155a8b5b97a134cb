"""Files that are written whole or not at all."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

Files = dict[str, bytes]  # content by name, below the folder that they go into


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
        with suppress(OSError):  # where nothing can be written, nothing can be removed either
            temporary.unlink(missing_ok=True)


def clear_temporary(path: Path) -> None:
    """Removes what killed processes left under temporary names."""
    for leftover in path.rglob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The digest of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
