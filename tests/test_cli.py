"""The command line: a command is a file of heal/commands, and a clone's scripts are the same commands."""

import importlib
import os
import runpy
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version

import pytest

from heal import __version__
from heal.choices import names, summary
from heal.cli import COMMANDS
from heal.keys import keys
from heal.versions import PACKAGES
from tests.commanded import ROOT, heal, refused

NAMES = {name: name.replace("_", "-") for name in names(COMMANDS)}
HEAVY = ("torch", "transformers", "matplotlib", "sklearn", "datasets", "peft", "trl", "wandb")
ACCELERATE = ["accelerate.commands.accelerate_cli", "launch", "-q"]


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process in the repository's root."""
    line = [sys.executable, *words]
    return subprocess.run(line, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_help_has_one_line_for_every_command_from_its_file_and_loads_no_heavy_library() -> None:
    for line in (["--help"], ["help"], ["-h"], []):
        done = heal(*line)
        assert done.returncode == 0
        for name, typed in NAMES.items():
            assert f"\n  {typed:<18} {summary(COMMANDS, name)}\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120

    commands = [["--help"], *([typed, "--help"] for typed in NAMES.values())]
    code = f"""import sys
from heal.cli import main
for words in {commands}:
    main(words)
    heavy = [name for name in {HEAVY} if name in sys.modules]
    assert not heavy, (words, heavy)"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_version_is_the_package_s_and_those_that_a_run_depends_on() -> None:
    said = heal("--version").stdout
    assert said.startswith(f"heal {__version__}, torch {version('torch')}, transformers {version('transformers')}, ")
    assert [part.split()[0] for part in said.split(", ")] == ["heal", *PACKAGES, "python", "device"]
    assert "missing" not in said


def test_a_word_that_is_no_command_names_the_nearest() -> None:
    refused(["exprot"], "'exprot': no such command; did you mean 'export'?")
    refused(["weight_difference"], "did you mean 'weight-difference'?")
    refused(["recipe=smoke"], "'recipe=smoke': no such command; valid: bench, calibrate,")


def test_every_command_lists_its_keys_with_their_meaning_and_refuses_others() -> None:
    for name, typed in NAMES.items():
        done = heal(typed, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: heal {typed} ")
        module = importlib.import_module(f"{COMMANDS}.{name}")
        own = [field.name for field in fields(module.Options)] if hasattr(module, "Options") else []
        assert [key for key in own if f"\n  {key}=" not in done.stdout] == []
        refused([typed, "no.such_key=1"], "unknown key 'no.such_key'")

    shown = heal("train", "--help").stdout
    assert [item.name for item in keys() if f"  {item.name}=" not in shown or item.help not in shown] == []


def test_a_script_is_the_command_of_its_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    scripts = {path.stem: path for path in (ROOT / "scripts").glob("*.py")}
    assert NAMES.keys() - {"train"} <= scripts.keys()
    for name in NAMES.keys() - {"train"}:
        monkeypatch.setattr("sys.argv", [str(scripts[name]), "--help"])
        runpy.run_path(str(scripts[name]), run_name="__main__")
        assert capsys.readouterr().out == heal(NAMES[name], "--help").stdout


def test_training_starts_as_a_file_as_a_module_as_a_command_and_by_accelerate_launch() -> None:
    for line in (["heal/train.py"], ["-m", "heal.train"], ["-m", "heal", "train"], ["-m", "heal.cli", "train"]):
        done = python(*line, "recipe=smok")
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr == "heal: recipe=smok: no such recipe; did you mean 'smoke'?\n"

    for started in (["--config_file", "accelerate_config.yaml", "heal/train.py"], ["-m", "heal.train"]):
        done = python("-m", *ACCELERATE, *started, "recipe=smok")
        assert done.returncode != 0  # the launcher's own
        assert "did you mean 'smoke'?" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_file_that_is_started_does_not_put_its_folder_on_the_path() -> None:
    """heal/ has modules that are called as packages of others may be; a user's own path stays as it is."""
    code = "import runpy, sys; sys.path.insert(0, {!r}); runpy.run_path('heal/train.py'); print(sys.path[0])"
    for before, after in ((str(ROOT / "heal"), str(ROOT)), ("/elsewhere", "/elsewhere")):
        assert python("-c", code.format(before)).stdout.strip() == after


def test_a_command_of_one_process_refuses_several_in_one_line_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, said in (("0", 1), ("1", 0)):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        done = heal("report", "run=runs/none")
        assert (done.returncode, done.stdout, done.stderr.count("2 processes were launched")) == (2, "", said)
        assert done.stderr.count("\n") == said


def test_a_mistake_is_one_line_with_a_hint_and_nothing_is_written(tmp_path) -> None:
    mistakes = {
        "recipe=kl_rev_rms": "did you mean 'kl_rev_rmse'?",
        "trait=lvoe": "did you mean 'love'?",
        "heal.tau=1": "did you mean 'heal.",
        "heal.rank=many": "expected int",
        "run.rounds=0": "must be >= 1",
    }
    for word, hint in mistakes.items():
        refused(["train", word, f"run.root={tmp_path}"], hint)
    done = heal("train", "model.name=/no/such/folder", f"run.root={tmp_path}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "model.name=/no/such/folder: found neither" in done.stderr
    assert list(tmp_path.iterdir()) == []
    for command in ("chat", "export", "report"):
        refused([command, f"run={tmp_path}"], f"{tmp_path}: not a run folder")


def test_a_tilde_in_the_name_of_a_run_is_the_home_folder(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for command in ("chat", "export", "report"):
        refused([command, "run=~/none"], f"{tmp_path / 'none'}: not a run folder")


def test_an_output_that_cannot_be_written_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    mistakes = {
        ("weight-difference", "out=heal"): "out=heal: that is a folder",
        ("weight-difference", "out=README.md/x"): "out=README.md/x: nothing can be written to README.md",
        ("weight-difference", "out=/proc/x"): "out=/proc/x: nothing can be written to /proc",
        ("weight-difference", "out=x.pt"): "out=x.pt: the file's name must end in .safetensors",
        ("coherence", "out=README.md"): "out=README.md: nothing can be written to README.md",
        ("compare", "runs/none", "out=README.md"): "out=README.md: nothing can be written to README.md",
    }
    for words, said in mistakes.items():
        refused(words, said)
