"""Standard streams and words as systems really have them: closed, not in UTF-8, not readable by anybody."""

import io
import os
import sys
from collections.abc import Sequence

from heal.errors import UserError


def mend_streams() -> None:
    """Makes the standard streams take every text: a character that one cannot encode is replaced, a closed one leads
    nowhere, and a terminal said to be 0 wide is as wide as it is."""
    for name in ("COLUMNS", "LINES"):
        if os.environ.get(name, "1").strip("0") == "":
            del os.environ[name]
    for number, (name, way) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would get its number, and what libraries print there
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, way, encoding="utf-8", closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")


def give_up_unwritable() -> None:
    """Sends what a standard stream still holds nowhere if it cannot be written: the interpreter flushes once more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def readable(words: Sequence[str]) -> list[str]:
    """The words of a command line as the UTF-8 that they were typed in, whatever the locale.

    Raises:
        UserError: one is not UTF-8, or the locale could not name a file with its letters.
    """
    encoding = sys.getfilesystemencoding()
    for word in words:
        shown = word.encode("ascii", "backslashreplace").decode()
        if not word.isascii() and encoding != "utf-8":
            raise UserError(f"'{shown}': the locale's {encoding} has no such letters; set PYTHONUTF8=1")
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"'{shown}': not UTF-8; set the terminal or the script to UTF-8") from error
    return list(words)
