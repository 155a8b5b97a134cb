"""How a command ends: its status, its one line, and what it leaves behind in its process."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from heal.environment import usable_cores
from heal.errors import RoundError, UserError
from heal.guard import command, guarded
from heal.memory import LESS
from heal.unforeseen import TRACEBACKS, tracebacks_into
from heal.versions import versions_line
from tests.cases import case
from tests.commanded import ROOT, heal

FULL = "CUDA error: out of memory"


def ended(error: BaseException, capsys: pytest.CaptureFixture[str], hint: str = "Again.") -> tuple[object, str]:
    """The exit status and the line of work that raises `error`."""

    def work() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        guarded(work, hint)
    return left.value.code, capsys.readouterr().err


def test_every_failure_is_one_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (UserError("trait=lvoe: no such trait"), (2, "heal: trait=lvoe: no such trait\n")),
        (RoundError("starved."), (1, "heal: starved. Again.\n")),
        (RoundError("starved.", again=False), (1, "heal: starved.\n")),
        (OSError(28, "No space left on device"), (1, "heal: No space left on device. Again.\n")),
        (OSError(28, "No space left on device", "x"), (1, "heal: x: No space left on device. Again.\n")),
        (OSError("cannot load\n it"), (1, "heal: cannot load it. Again.\n")),
        (MemoryError("9 GiB"), (1, f"heal: out of memory (9 GiB); {LESS}. Again.\n")),
        (RuntimeError(f"x: {FULL}\nat"), (1, f"heal: out of memory (x: {FULL}); {LESS}. Again.\n")),
        (KeyboardInterrupt(), (130, "heal: stopped. Again.\n")),
    ]
    for error, expected in cases:
        assert ended(error, capsys) == expected, repr(error)


def test_what_nobody_foresaw_is_one_line_that_names_the_file_with_its_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    class Panic(BaseException):
        """Libraries in Rust raise what is no Exception."""

    for error in (
        KeyError("x"),
        ValueError("two\nlines"),
        RecursionError("deep"),
        Panic("at the disco"),
    ):
        with case(error):
            status, line = ended(error, capsys)
            assert (status, line.count("\n")) == (1, 1)
            assert line.startswith(f"heal: unexpected {type(error).__name__}")
            assert line.endswith(". Again.\n")
            (written,) = tmp_path.iterdir()
            assert str(written) in line
            text = written.read_text()
            assert "Traceback (most recent call last)" in text
            assert versions_line() in text
            written.unlink()


def test_what_nobody_foresaw_in_a_run_is_kept_in_its_folder_if_that_can_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: Path) -> str:
        def work() -> None:
            with tracebacks_into(folder):
                raise IndexError(7)

        with pytest.raises(SystemExit, match="1"):
            guarded(work, "Again.")
        return capsys.readouterr().err

    for _ in range(2):
        assert f" {tmp_path / TRACEBACKS}. Again." in run(tmp_path)
    assert (tmp_path / TRACEBACKS).read_text().count("IndexError: 7") == 2
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert f"{tmp_path}/heal-traceback-" in run(tmp_path / "gone")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert "could not be written anywhere" in run(tmp_path / "gone")


def test_memory_that_runs_out_in_a_run_is_foreseen(tmp_path: Path) -> None:
    with pytest.raises(RoundError, match=r"out of memory in the run \(9 GiB\); use"), tracebacks_into(tmp_path):
        raise MemoryError("9 GiB")
    assert list(tmp_path.iterdir()) == []


def test_an_error_stays_one_line_whatever_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("two\nlines", "x" * 10**6, "next\u0085line\u2028end", "caf\udce9"):
        with case(text[:20]):
            status, line = ended(UserError(text), capsys)
            assert (status, len(line.splitlines()), len(line) < 3000) == (2, 1, True)


def test_a_broken_pipe_other_than_standard_output_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    assert ended(BrokenPipeError(32, "Broken pipe"), capfd, "") == (1, "heal: Broken pipe.\n")


def test_a_command_gets_its_words_or_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[object] = []
    command(["a=1", "b"], lambda: "help", seen.append)
    for asking in ("--help", "-h", "help"):
        command(["a=1", asking], lambda: "help", seen.append)
    assert seen == [["a=1", "b"]]
    assert capsys.readouterr().out == "help\n" * 3


def test_a_word_with_bytes_that_are_no_text_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(["a=1", "b=\udcff"], lambda: "help", print)
    assert capsys.readouterr().err.startswith("heal: 'b=\\udcff': not UTF-8; ")


def test_sigterm_stops_the_work_and_its_handler_is_gone_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="130"):
        guarded(lambda: signal.raise_signal(signal.SIGTERM))
    assert capsys.readouterr().err == "heal: stopped.\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_reader_that_has_had_enough_ends_the_help_without_a_word() -> None:
    line = [sys.executable, "-m", "heal", "train", "--help"]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (said, process.returncode) == ("", 1)


def test_a_file_that_fails_is_one_line_with_its_name_and_exit_1(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    done = heal("sweep", "recipe=smoke", f"run.root={tmp_path / 'taken'}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"heal: {tmp_path / 'taken'}: File exists. What was finished is kept")
    assert done.stderr.count("\n") == 1


def test_a_launcher_that_leaves_one_thread_does_not_slow_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    free = usable_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert free == usable_cores() <= (os.cpu_count() or 1)
