"""Terminals that are not UTF-8, streams that are closed, words that are no text."""

import io
import subprocess
import sys

import pytest

from heal.console import Console
from heal.errors import UserError
from heal.streams import mend_streams, readable
from tests.cases import case
from tests.commanded import ROOT

TEXT = "naïve 日本 \udce9"


def test_a_character_that_a_terminal_has_not_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {
        "ascii": b"na?ve ?? ?\n",
        "latin-1": b"na\xefve ?? ?\n",
        "cp1252": b"na\xefve ?? ?\n",
        "utf-8": "naïve 日本 ?\n".encode(),
    }
    for encoding, said in expected.items():
        with case(encoding), monkeypatch.context() as patched:
            written = io.BytesIO()
            patched.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
            patched.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"na\xff\xc3\xafve"), encoding=encoding))
            mend_streams()
            print(TEXT, flush=True)
            assert written.getvalue() == said
            assert sys.stdin.read().startswith("na")


def test_a_terminal_that_is_said_to_be_0_wide_or_very_narrow_shows_every_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for width in ("0", "", "abc", "1", "20"):
        with case(width), monkeypatch.context() as patched:
            patched.setenv("COLUMNS", width)
            mend_streams()
            Console().say("a line that is longer than 20 columns")
            assert capsys.readouterr().out == "a line that is longer than 20 columns\n"


def test_no_file_takes_the_place_of_a_stream_that_is_closed(tmp_path) -> None:
    code = f"""from heal.streams import mend_streams
mend_streams()
with open({str(tmp_path / "file")!r}, "w") as file:
    assert file.fileno() > 2, file.fileno()
    print("nobody reads this")
    file.write("whole")"""
    line = f"'{sys.executable}' -c \"$CODE\" <&- >&- 2>&-"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env={"CODE": code}, check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "whole"


def test_a_word_that_is_no_text_is_refused_and_every_other_one_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run.name=x", "model.system=naïve 日本"]
    assert readable(words) == words
    with pytest.raises(UserError, match=r"'prompt=caf\\udce9': not UTF-8"):
        readable(["prompt=caf\udce9"])
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert readable(words[:1]) == words[:1]
    with pytest.raises(UserError, match="the locale's ascii has no such letters; set PYTHONUTF8=1"):
        readable(words)
