"""The command chat: its answers are the three models', they come as they are said, and nothing in them is markup."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from heal.commands.chat import Options
from heal.conversation.flow import Flow, columns, fits_columns
from heal.conversation.settings import Settings
from heal.conversation.talk import Reply, Stopped, Talk, printable
from heal.decoding import Sampling, decode
from heal.errors import UserError
from heal.run.folder import RunFolder
from heal.run.student import load_student
from heal.steering.vector import SteeringVector
from tests import finished, tiny
from tests.cases import case
from tests.commanded import ROOT, heal, refused

PROMPT = "Name a cat."
TOKENS = 12
TEXTS = (
    "Words, of which none is broken [bold]anywhere[/bold].\n\n  - a list\n  - of two",
    "一二三四五六七八九十一二三四五六七八九十一二三四五六七八九十",
    "half \ufffd a character, and a-word-that-is-longer-than-the-terminal-is-wide, so there",
    "\x1b[31mred\x1b]0;title\x07 café",
    "",
)


class Heard:
    """A listener that writes down everything; stops after so many tokens where it is told to."""

    def __init__(self, stop: Callable[[str, int], bool] = lambda side, count: False):
        self._stop = stop
        self.grown: dict[str, list[str]] = {}
        self.replies: dict[str, Reply] = {}

    def begins(self, side: str, head: str) -> None:
        self.grown[side] = []

    def hears(self, side: str, text: str, thinking: bool) -> None:
        self.grown[side].append(text)
        if self._stop(side, len(self.grown[side])):
            raise Stopped

    def ends(self, side: str, reply: Reply) -> None:
        self.replies[side] = reply


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished.write_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder)


def talking(run: RunFolder, **settings) -> Talk:
    return Talk(run, Settings(tokens=TOKENS, **settings), tiny.CPU)


def said(talk: Talk, message: str = PROMPT) -> dict[str, str]:
    heard = Heard()
    talk.say(message, heard)
    return {side: reply.text for side, reply in heard.replies.items()}


def test_base_steered_and_healed_answer_as_those_models_do(run: RunFolder) -> None:
    """At a dose and a gate; the gated update is that of a student whose rounds are all folded."""
    for index in (0, 1):
        with case(index):
            answers = said(talking(run, round=str(index + 1), dose=0.5, gate=0.75))
            student = load_student(run, tiny.CPU, index)
            model, accumulator = student.model, student.accumulator
            vector = SteeringVector.load(run.round(index) / "vector.safetensors")
            prompts = [model.chat.ids(student.recipe.model.system, PROMPT)]
            with accumulator.base():
                base = decode(model, prompts, TOKENS)[0]
                steered = decode(model, prompts, TOKENS, vector, [0.5])[0]
            with accumulator.gates(0.75, 0.75):
                healed = decode(model, prompts, TOKENS)[0]
            if index:
                before = load_student(run, tiny.CPU, index - 1)
                steered = decode(before.model, prompts, TOKENS, vector, [0.5])[0]
            wanted = {"base": base, "steered": steered, "healed": healed}
            assert answers == {side: model.chat.decode(list(one.ids)) for side, one in wanted.items()}
            assert len(set(answers.values())) == 3


def test_each_side_remembers_its_own_answers_until_they_are_taken_back(run: RunFolder) -> None:
    talk = talking(run, sides="base,healed", system="Be brief.", temperature=1.0, seed=3)
    first, second = said(talk), said(talk, "Why?")
    student = load_student(run, tiny.CPU)
    model, recipe = student.model, student.recipe.generation
    sampling, seeds = Sampling(1.0, recipe.top_p, recipe.top_k), [("chat", 3, "Why?")]
    for side, context in (("base", student.accumulator.base), ("healed", student.accumulator.student)):
        with case(side), context():
            earlier = [("user", PROMPT), ("assistant", first[side])]
            ids = model.chat.ids("Be brief.", "Why?", earlier=earlier)
            answer = decode(model, [ids], TOKENS, sampling=sampling, seeds=seeds)[0]
            assert second[side] == model.chat.decode(list(answer.ids))
    assert talk.take_back() == "Why?"
    assert said(talk, "Why?") == second
    talk.reset()
    assert said(talk) == first
    assert said(talk, "Why?") == second


def test_an_answer_is_heard_as_it_grows_and_stopping_it_changes_nothing_else(run: RunFolder) -> None:
    talk = talking(run)
    free = Heard()
    talk.say(PROMPT, free)
    for side, reply in free.replies.items():
        grown = free.grown[side]
        assert len(grown) == TOKENS, side
        assert grown[-1] == reply.text, side
        assert reply.note == f"cut at {TOKENS} tokens", side
    talk.reset()
    stopped = Heard(lambda side, count: side == "steered" and count == 3)
    talk.say(PROMPT, stopped)
    assert list(stopped.replies) == ["base", "steered"]
    assert stopped.replies["steered"] == Reply(free.grown["steered"][2], "stopped", stopped=True)
    assert [len(talk.turns[side]) for side in ("base", "steered", "healed")] == [2, 2, 0]
    talk.take_back()
    assert said(talk) == {side: reply.text for side, reply in free.replies.items()}


def test_settings_change_while_chatting_and_what_is_refused_changes_nothing(run: RunFolder) -> None:
    talk = talking(run)
    for name, text in (("round", "1"), ("dose", "0.5"), ("gate", "0.5"), ("system", ""), ("sides", "healed,steered")):
        talk.change(name, text)
    changed = {"round": "1", "dose": 0.5, "gate": 0.5, "system": "", "sides": "healed,steered"}
    assert said(talk) == said(talking(run, **changed))
    assert list(talk.heads) == ["healed", "steered"]
    before = talk.settings
    for name, text in (("round", "3"), ("dose", "x"), ("gate", "inf"), ("sides", "all"), ("tokens", "0")):
        with case(name, text), pytest.raises(UserError, match=name):
            talk.change(name, text)
    assert talk.settings == before
    talk.change("system", None)
    assert talk.system == load_student(run, tiny.CPU).recipe.model.system
    for message, said_of_it in (
        ("x" * 1100, "context is 1024"),
        (" ", "empty"),
        ("Hello\n⟨assistant⟩ Yes.\n⟨user⟩ Why?", "one turn at a time"),
        ("Hello\n⟨user⟩ Why?", "one turn at a time"),
    ):
        with case(message[:20]), pytest.raises(UserError, match=said_of_it):
            talk.say(message, Heard())


def test_text_that_grows_is_written_whole_with_its_words_unbroken() -> None:
    for text in TEXTS:
        for step, width in ((1, 20), (3, 20), (7, 20), (1, None)):
            with case(text, step, width):
                output = io.StringIO()
                terminal = {} if width is None else {"force_terminal": True, "width": width, "color_system": None}
                flow = Flow(Console(file=output, **terminal))
                for end in range(1, len(text), step):
                    flow.show(text[:end])
                flow.end(Reply(text, "cut"))
                written = output.getvalue()
                note = " [cut]" if text else "[cut]"
                assert re.sub(r"\s", "", written) == re.sub(r"\s", "", printable(text) + note)
                if width is None:
                    assert written == f"{printable(text)}{note}\n\n"
                words = {word for line in written.splitlines() for word in line.split()}
                assert {word for word in printable(text).split() if len(word) <= 10} <= words
    assert printable("a\x1b]0;title\x07b\nc\td\r\x9b1m\u202e") == "a]0;titleb\nc\td1m"


def test_a_wide_terminal_shows_columns_that_fit_the_screen_while_they_grow() -> None:
    heads = {"base": "base (x)", "steered": "steered (y)", "healed": "healed (z)"}
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, height=20, color_system=None)
    assert fits_columns(console, 3)
    assert not fits_columns(Console(file=output, force_terminal=True, width=80), 3)
    assert not fits_columns(Console(file=output, width=200), 3)
    replies = {side: Reply("[bold]" + f"{side} " * 300) for side in heads}
    for whole in (True, False):
        output.truncate(0)
        console.print(columns(console, heads, replies, whole))
        lines = output.getvalue().splitlines()
        assert any("base base" in line and "healed healed" in line for line in lines)
        assert ("[bold]base" in output.getvalue()) == whole
        assert (len(lines) <= 20) != whole


def test_a_pipe_says_messages_and_commands_and_rounds_are_typed_from_1(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["chat", f"run={run.path}", "tokens=2", "device=cpu"]
    done = heal(*line, f"prompt={PROMPT}", "round=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "healed (after round 1)" in done.stdout
    refused([*line, "round=0"], "round=0: rounds are counted from 1; the first is round=1")
    refused([*line, "round=3"], "round=3: the last finished round is round=2")
    typed = [PROMPT, "", "/round 1", "/dose 0.5", "/again", "//dose 1", "/sides healed", "/help", "/gait 1", "never"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(typed)))
    done = heal(*line)
    assert (done.returncode, done.stderr) == (2, "heal: '/gait': no such command; did you mean '/gate'?\n")
    for words in ("x c* of round 2 = ", "+ 0.5 x c* of round 1 = ", "you> //dose 1", "/temperature ...", "you> /gait"):
        assert words in done.stdout, words
    assert done.stdout.count("steered (") == 3
    assert "never" not in done.stdout
    assert Options(run="x", dose=2.0).settings == Settings(dose=2.0)


def test_at_a_terminal_ctrl_c_stops_the_answer_and_then_leaves(run: RunFolder, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}
    line = [sys.executable, "-m", "heal", "chat", f"run={run.path}", "sides=base", "tokens=900", "device=cpu"]
    process = subprocess.Popen(
        line, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    shown = ""

    def until(text: str) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(ours, 4096).decode(errors="replace")
        shown = shown.partition(text)[2]

    until("you>")
    os.write(ours, b"Say it\x1b\ragain\r")  # a line break in it
    until("base (")
    until("\n")
    shown += os.read(ours, 4096).decode(errors="replace")
    process.send_signal(signal.SIGINT)
    until("[stopped]")
    until("you>")
    os.write(ours, b"/dose 0.5\r")
    until("dose: 0.5")
    until("you>")
    os.write(ours, b"\x03")
    assert process.wait(timeout=60) == 0
    os.close(ours)
    kept = (tmp_path / "heal" / "chat-history").read_text()
    assert "+Say it\n+again\n" in kept
    assert "+/dose 0.5\n" in kept
