"""The command chat: the three answers are the three models', and model text is never read as markup."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from heal.commands import chat
from heal.decoding import decode
from heal.run.folder import RunFolder
from heal.run.student import load_student
from heal.steering.vector import SteeringVector
from tests import finished, tiny
from tests.commanded import heal, refused

PROMPT = "Name a cat."
HEADS = {"base": "base (x)", "steered": "steered (y)", "healed": "healed (z)"}


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished.write_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder)


@pytest.mark.parametrize("index", [0, 1])
def test_base_steered_and_healed_answer_as_those_models_do(run: RunFolder, index: int) -> None:
    options = chat.Options(run=str(run.path), alpha=0.5, tokens=12, device="cpu")
    answer, heads = chat.load(run, options, index)
    said = {stage: answer(stage, PROMPT) for stage in heads}
    student = load_student(run, tiny.CPU, index)
    model, vector = student.model, SteeringVector.load(run.round(index) / "vector.safetensors")
    ids = [model.chat.ids(student.recipe.model.system, PROMPT)]

    def wanted(completion) -> str:
        return model.chat.decode(list(completion.ids)) + ("" if completion.ended else " ...")

    with student.accumulator.base():
        assert said["base"] == wanted(decode(model, ids, 12)[0])
    assert said["healed"] == wanted(decode(model, ids, 12)[0])
    before = student if index else None
    if before is not None:
        before = load_student(run, tiny.CPU, index - 1)
        assert said["steered"] == wanted(decode(before.model, ids, 12, vector, [0.5])[0])
    else:
        with student.accumulator.base():
            assert said["steered"] == wanted(decode(model, ids, 12, vector, [0.5])[0])
    assert len(set(said.values())) == 3


def test_a_narrow_or_piped_output_stacks_the_answers_and_keeps_brackets() -> None:
    output = io.StringIO()
    chat.show(Console(file=output), HEADS, lambda stage, prompt: f"[bold]{stage}\x1b[31m", PROMPT)
    lines = output.getvalue().splitlines()
    assert lines[:2] == ["base (x)", "[bold]base[31m"]
    assert "\x1b" not in output.getvalue()


def test_a_wide_terminal_shows_columns() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, color_system=None)
    chat.show(console, HEADS, lambda stage, prompt: f"[bold]{stage}", PROMPT)
    assert any("[bold]base" in line and "[bold]healed" in line for line in output.getvalue().splitlines())


def test_control_characters_are_stripped_but_lines_stay() -> None:
    assert chat.printable("a\x1b]0;title\x07b\nc\td\r\x9b1m\u202e") == "a]0;titleb\nc\td1m"


def test_a_prompt_longer_than_the_context_is_said(run: RunFolder) -> None:
    answer, _ = chat.load(run, chat.Options(run=str(run.path), tokens=4, device="cpu"))
    assert "context is 1024" in answer("base", "x" * 1100)


def test_rounds_are_typed_from_1(run: RunFolder) -> None:
    line = ["chat", f"run={run.path}", f"prompt={PROMPT}", "tokens=2", "device=cpu"]
    for number in (1, 2):
        done = heal(*line, f"round={number}")
        assert done.returncode == 0, done.stderr
        assert f"healed (after round {number})" in done.stdout
    assert "x c* of round 2 = " in heal(*line).stdout
    refused([*line, "round=0"], "round=0: rounds are counted from 1; the first is round=1")
    refused([*line, "round=3"], "round=3: the last finished round is round=2")
