"""scripts/chat.py: the three answers are the three models', and model text is never read as markup."""

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from heal.decoding import decode
from heal.run.folder import RunFolder
from heal.run.student import load_student
from heal.steering.vector import SteeringVector
from tests import finished, tiny

PROMPT = "Name a cat."
PATH = Path(__file__).resolve().parent.parent / "scripts" / "chat.py"


@pytest.fixture(scope="module")
def chat() -> ModuleType:
    """The script as a module."""
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("chat_script", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chat_script"] = module
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished.write_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder)


@pytest.mark.parametrize("index", [0, 1])
def test_base_steered_and_healed_answer_as_those_models_do(chat: ModuleType, run: RunFolder, index: int) -> None:
    options = chat.Options(run=str(run.path), alpha=0.5, tokens=12, round=index, device="cpu")
    answer, heads = chat.load(run, options)
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


def test_a_narrow_or_piped_output_stacks_the_answers_and_keeps_brackets(chat: ModuleType) -> None:
    heads = {"base": "base (x)", "steered": "steered (y)", "healed": "healed (z)"}
    output = io.StringIO()
    chat.show(Console(file=output), heads, lambda stage, prompt: f"[bold]{stage}\x1b[31m", PROMPT)
    lines = output.getvalue().splitlines()
    assert lines[:2] == ["base (x)", "[bold]base[31m"]
    assert "\x1b" not in output.getvalue()


def test_a_wide_terminal_shows_columns(chat: ModuleType) -> None:
    heads = {"base": "base (x)", "steered": "steered (y)", "healed": "healed (z)"}
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, color_system=None)
    chat.show(console, heads, lambda stage, prompt: f"[bold]{stage}", PROMPT)
    assert any("[bold]base" in line and "[bold]healed" in line for line in output.getvalue().splitlines())


def test_control_characters_are_stripped_but_lines_stay(chat: ModuleType) -> None:
    assert chat.printable("a\x1b]0;title\x07b\nc\td\r\x9b1m\u202e") == "a]0;titleb\nc\td1m"


def test_a_prompt_longer_than_the_context_is_said(chat: ModuleType, run: RunFolder) -> None:
    answer, _ = chat.load(run, chat.Options(run=str(run.path), tokens=4, device="cpu"))
    assert "context is 1024" in answer("base", "x" * 1100)
