"""Serving: an export's tokens are held against those of the server, by whatever the interpreter that is given answers.

vLLM is no part of the tests' environment: a program that speaks its protocol and computes with transformers stands in
for it, once faithful, once deaf to the adapter, as vLLM is to modules that it has under other names.
"""

import sys
from pathlib import Path

import pytest

from heal.commands.verify_serving import main
from heal.errors import UserError
from heal.export.adapter import export_adapter
from heal.export.merged import export_merged
from heal.export.serving import reason, verify_serving
from heal.run.student import Student
from tests import finished

SERVER = """#!{python}
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

request = json.loads(Path(sys.argv[2]).read_text())
model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32)
def said():
    rows = []
    for ids in request["prompts"]:
        row = list(ids)
        for _ in range(request["tokens"]):
            row.append(int(model(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
        rows.append(row[len(ids):])
    return rows
answer = dict(architecture=type(model).__name__, base=said(), adapter=None)
if request["adapter"]:
    if {hears}:
        model = PeftModel.from_pretrained(model, request["adapter"])
    answer["adapter"] = said()
Path(sys.argv[3]).write_text(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def student(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Student:
    return finished.student(finished.write_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder))


def server(folder: Path, hears: bool) -> Path:
    path = folder / f"server_{hears}"
    path.write_text(SERVER.format(python=sys.executable, hears=hears))
    path.chmod(0o755)
    return path


def test_an_export_that_is_served_as_it_is_has_the_same_tokens(student: Student, tmp_path: Path):
    python, prompts = server(tmp_path, hears=True), ["Name a cat.", "Sing."]
    adapter = verify_serving(export_adapter(student, tmp_path / "adapter").path, python, prompts, 6)
    model = verify_serving(export_merged(student, tmp_path / "model").path, python, prompts, 6)
    assert (adapter.fault, adapter.equal, adapter.architecture) == (None, 2, "LlamaForCausalLM")
    assert adapter.changed == adapter.served_changed > 0
    assert (model.kind, model.fault, model.equal) == ("model", None, 2)


def test_an_adapter_that_the_server_does_not_hear_is_a_failure(
    student: Student, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = export_adapter(student, tmp_path / "adapter").path
    with pytest.raises(SystemExit) as caught:
        main([f"export={folder}", f"python={server(tmp_path, hears=False)}", "prompts=2", "tokens=6"])
    assert caught.value.code == 2
    assert "no module of the adapter is active in vLLM's LlamaForCausalLM" in capsys.readouterr().err


def test_what_cannot_be_served_is_said_in_one_line(tmp_path: Path, student: Student):
    folder = export_adapter(student, tmp_path / "adapter").path
    for export, python, why in (
        (tmp_path, Path(sys.executable), "neither an adapter"),
        (folder, tmp_path / "nowhere", "give the interpreter of an environment with vLLM"),
        (folder, Path(sys.executable), "vLLM failed: ModuleNotFoundError"),
    ):
        with pytest.raises(UserError, match=why) as caught:
            verify_serving(export, python, ["Sing."], 2)
        assert "\n" not in str(caught.value)
    logged = """(EngineCore pid=9) ERROR 11-26 20:13:11 [core.py:12] Traceback (most recent call last):
(EngineCore pid=9) ERROR 11-26 20:13:11 [core.py:12] ValueError: no bias
Traceback (most recent call last):
v1.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.
"""
    assert reason(logged) == "ValueError: no bias"
    assert reason(logged.splitlines()[-1]) == logged.splitlines()[-1]
