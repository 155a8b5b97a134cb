"""What a person sees: plain lines in a pipe, literal model text, and a result with its duration."""

import re
import time

import pytest

from heal.console import Console, _duration, fail
from tests.cases import case

ESCAPE = "\x1b"
MARKUP = "[bold]x[/bold] [/] [red] [link=file:///]y[/link] :smile:"


def in_pipe(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A console whose output is captured, as in a log file."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Console()


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A console that takes its output for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Console()


BOTH = (in_pipe, on_terminal)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Console:
    return in_pipe(monkeypatch)


def say_everything(console: Console) -> None:
    console.title("round 1 of 3")
    console.say("a line")
    console.warn("a warning")
    with console.step("extract") as line:
        for done in range(5):
            line.progress(done, 4)
        line.result("norm 3.14")
    console.table("round 1", {"dose": "1.00", "kept": "12 of 16"})


def test_a_pipe_gets_no_escape_codes(pipe: Console, capsys: pytest.CaptureFixture[str]):
    assert not pipe.is_terminal
    say_everything(pipe)
    shown = capsys.readouterr()
    assert ESCAPE not in shown.out + shown.err
    assert "\r" not in shown.out


def test_a_terminal_gets_bars_and_colours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    terminal = on_terminal(monkeypatch)
    assert terminal.is_terminal
    say_everything(terminal)
    assert ESCAPE in capsys.readouterr().out


def test_everything_that_was_said_is_shown_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for where in BOTH:
        with case(where.__name__):
            say_everything(where(monkeypatch))
            shown = capsys.readouterr().out
            said = ["round 1 of 3", "a line", "warning: a warning", "norm 3.14", "12 of 16"]
            places = [shown.find(text) for text in said]
            assert -1 not in places
            assert places == sorted(places)


def test_text_of_a_model_is_shown_as_it_is_and_never_as_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for where in BOTH:
        with case(where.__name__):
            console = where(monkeypatch)
            console.say(MARKUP)
            console.warn(MARKUP)
            console.title(MARKUP)
            with console.step("steered") as line:
                line.result(MARKUP)
            console.table("round 1", {"verdict": MARKUP})
            assert capsys.readouterr().out.count(MARKUP) == 5


def test_a_step_leaves_one_line_with_its_result_and_its_duration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for where in BOTH:
        with case(where.__name__):
            with where(monkeypatch).step("calibrate") as line:
                line.result("an earlier result")
                time.sleep(0.11)
                line.result("c* = 1.25")
            shown = capsys.readouterr().out
            (seconds,) = re.findall(r"calibrate  *c\* = 1\.25  \((.*) s\)\n", shown)
            assert 0.1 <= float(seconds) < 5.0
            assert "an earlier result" not in shown


def interrupted(console: Console) -> None:
    with console.step("heal") as line:
        line.result("loss 1.0")
        raise KeyboardInterrupt


def test_a_step_that_fails_leaves_no_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for where in BOTH:
        with case(where.__name__):
            with pytest.raises(KeyboardInterrupt):
                interrupted(where(monkeypatch))
            assert "loss 1.0" not in capsys.readouterr().out


def test_a_pipe_gets_one_line_for_each_text_however_long(pipe: Console, capsys: pytest.CaptureFixture[str]):
    pipe.say("word " * 200)
    pipe.table("round 1", {f"name {number}": "value " * 10 for number in range(10)})
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_long_step_tells_a_pipe_how_far_it_is_and_how_long_it_will_take(
    pipe: Console, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    now = [100.0]
    monkeypatch.setattr("heal.console.time.perf_counter", lambda: now[0])
    with pipe.step("generate") as line:
        for done in range(101):
            line.progress(done, 100)
            now[0] += 1.0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["generate", "10/100,", "about", "1", "min", "30", "s", "left"]
    assert 5 < len(lines) < 15
    assert [line for line in lines[:-1] if not re.search(r"\d+/100, about .* s left$", line)] == []
    assert lines[-1].endswith("(1 min 41 s)")


def test_a_short_step_tells_a_pipe_nothing_but_its_end(pipe: Console, capsys: pytest.CaptureFixture[str]):
    with pipe.step("extract") as line:
        for done in range(1000):
            line.progress(done, 999)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_duration_reads_like_one():
    for seconds, text in [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (10.0, "10 s"),
        (59.4, "59 s"),
        (60.0, "1 min 00 s"),
        (3599.0, "59 min 59 s"),
    ]:
        with case(seconds, text):
            assert _duration(seconds) == text


def test_a_failure_is_one_line_on_standard_error_and_a_status(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as error:
        fail("trait=lvoe: no such trait", 2)
    shown = capsys.readouterr()
    assert error.value.code == 2
    assert shown.out == ""
    assert shown.err == "heal: trait=lvoe: no such trait\n"
