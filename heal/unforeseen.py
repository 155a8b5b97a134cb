"""Errors that nobody foresaw: one line for the user, and the traceback in a file."""

import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heal.errors import RoundError, UserError
from heal.memory import memory_told
from heal.messages import Elsewhere
from heal.versions import versions_line

HERE = Path(__file__).resolve().parent
TRACEBACKS = "traceback.txt"  # in a run folder


class Unforeseen(Exception):
    """One line that names the error and the file that its traceback is in; exit 1."""


@contextmanager
def tracebacks_into(folder: Path) -> Iterator[None]:
    """Turns an error that nobody foresaw into an `Unforeseen`, whose traceback is appended to a file in `folder`."""
    try:
        with memory_told("in the run"):
            yield
    except (UserError, RoundError, OSError, Unforeseen, Elsewhere):
        raise
    except Exception as error:
        raise Unforeseen(kept(error, folder / TRACEBACKS)) from error


def kept(error: BaseException, file: Path | None = None) -> str:
    """The line that says what happened, where, and where its traceback was put.

    Args:
        error: what was raised.
        file: where to; None, or where it cannot be written: a new file in the temporary folder.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if HERE in Path(frame.filename).parents]
    where = f" at heal/{Path(frames[-1].filename).relative_to(HERE)}:{frames[-1].lineno}" if frames else ""
    reason = " ".join(str(error).split())
    said = f"unexpected {type(error).__name__}{where}{f' ({reason})' if reason else ''}"
    content = "\n".join(
        [
            time.strftime("%Y-%m-%d %H:%M:%S"),
            versions_line(),
            shlex.join(sys.argv),
            *(part.rstrip("\n") for part in traceback.format_exception(error)),
            "",
        ]
    )
    for place in [file, None] if file else [None]:
        try:
            return f"{said}; please report it with the traceback in {_append(content, place)}."
        except OSError:
            continue
    return f"{said}; its traceback could not be written anywhere."


def _append(content: str, file: Path | None) -> Path:
    if file is None:
        handle, name = tempfile.mkstemp(prefix="heal-traceback-", suffix=".txt")
        os.close(handle)
        file = Path(name)
    with open(file, "a", encoding="utf-8", errors="backslashreplace") as target:
        target.write(content)
    return file
