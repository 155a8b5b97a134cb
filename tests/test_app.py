"""The command line as a user types it, in a process of its own, and which run a command goes on with."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from heal.app import files_read, opened
from heal.environment import usable_cores
from heal.errors import RoundError, UserError
from heal.guard import guarded
from heal.recipe import keys, load_recipe
from heal.run.folder import RunFolder
from heal.trait import load_trait
from tests.running import words

ROOT = Path(__file__).resolve().parent.parent
PYTHON = [sys.executable, "heal/train.py"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "-q"]


def run(line: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in the repository's root."""
    return subprocess.run(line, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_help_lists_every_key_with_its_type_and_meaning() -> None:
    done = run([*PYTHON, "--help"])
    assert done.returncode == 0
    assert [item.name for item in keys() if f"  {item.name}=" not in done.stdout or item.help not in done.stdout] == []


@pytest.mark.parametrize("line", [["heal/train.py"], ["scripts/sweep.py"]])
def test_a_reader_that_has_had_enough_ends_the_help_without_a_word(line: list[str]) -> None:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *line, "--help"], cwd=ROOT, text=True, **streams) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (said, process.returncode) == ("", 1)


def test_a_file_that_fails_is_one_line_with_its_name_and_exit_1(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    done = run([sys.executable, "scripts/sweep.py", "recipe=smoke", f"run.root={tmp_path / 'taken'}"])
    assert done.returncode == 1
    assert done.stderr.startswith(f"heal: {tmp_path / 'taken'}: File exists. What was finished is kept")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device."),
        (OSError("cannot load\n it"), "cannot load it."),
        (BrokenPipeError(32, "Broken pipe"), "Broken pipe."),  # another pipe than standard output
    ],
)
def test_an_error_of_the_system_without_a_file_is_one_line(
    error: OSError, said: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda number, handler: None)

    def work() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        guarded(work)
    assert (left.value.code, capfd.readouterr().err) == (1, f"heal: {said}\n")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("recipe=kl_rev_rms", "did you mean 'kl_rev_rmse'?"),
        ("trait=lvoe", "did you mean 'love'?"),
        ("heal.tau=1", "did you mean 'heal."),
        ("heal.rank=many", "expected int"),
        ("run.rounds=0", "must be >= 1"),
        ("model.name=/no/such/folder", "not found"),
    ],
)
def test_a_mistake_is_one_line_with_a_hint_and_exit_2(word: str, hint: str, tmp_path: Path) -> None:
    done = run([*PYTHON, word, f"run.root={tmp_path}"])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert hint in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_scenes_or_a_template_that_were_edited_are_not_continued_with(tmp_path: Path) -> None:
    scenes, template, run = tmp_path / "mine.jsonl", tmp_path / "mine.jinja", RunFolder(tmp_path / "run")
    recipe = load_recipe(["recipe=smoke", f"evaluation.vignettes={scenes}", f"model.chat_template={template}"])
    for path in (scenes, template):
        path.write_text("first")
    run.start(recipe, {"dtype": "float32"} | files_read(recipe, load_trait("love")))
    run.refuse_other(recipe, files_read(recipe, load_trait("love")))
    for path, name in ((scenes, "vignettes"), (template, "chat_template")):
        path.write_text("second")
        with pytest.raises(UserError, match=f"{name}: changed since the run started"):
            run.refuse_other(recipe, files_read(recipe, load_trait("love")))
        path.write_text("first")
    template.unlink()
    with pytest.raises(UserError, match=r"model\.chat_template=\S+: no such file"):
        files_read(recipe, load_trait("love"))


@pytest.mark.parametrize("scenes", ["none", "embedded"])
def test_what_comes_with_heal_is_not_held_against_a_run(scenes: str) -> None:
    recipe, trait = load_recipe(["recipe=smoke", f"evaluation.vignettes={scenes}"]), load_trait("love")
    assert files_read(recipe, trait) == {"trait": trait.to_json()}


def test_a_run_is_opened_again_only_with_the_scenes_that_it_started_with(tiny_folder: Path, tmp_path: Path) -> None:
    scenes = tmp_path / "mine.jsonl"
    scenes.write_text('{"id": "1", "text": "He kicks a dog.", "foundation": "care"}\n')
    line = words(tiny_folder, tmp_path / "runs", f"evaluation.vignettes={scenes}", "compute.threads=1")
    for _ in range(2):
        with opened(load_recipe(line)) as session:
            assert len(session.vignettes) == 1
    scenes.write_text('{"id": "1", "text": "She kicks a dog.", "foundation": "care"}\n')
    with pytest.raises(UserError, match="vignettes: changed since the run started"), opened(load_recipe(line)):
        pass


def test_a_tilde_in_the_root_of_the_runs_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    taken = tmp_path / "runs" / "there"
    taken.mkdir(parents=True)
    (taken / "thesis.txt").write_text("mine")
    recipe = load_recipe(["recipe=smoke", "run.root=~/runs", "run.name=there"])
    with pytest.raises(UserError, match=re.escape(f"{taken}: the folder holds something")), opened(recipe):
        pass


@pytest.mark.parametrize("script", ["chat", "export", "report"])
def test_a_tilde_in_the_name_of_a_run_is_the_home_folder(script: str, tmp_path: Path) -> None:
    done = run([sys.executable, f"scripts/{script}.py", "run=~/none"], HOME=str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path / 'none'}: not a run folder" in done.stderr


@pytest.mark.parametrize(("again", "said"), [(True, "heal: starved. Again.\n"), (False, "heal: starved.\n")])
def test_the_same_command_is_advised_only_where_it_helps(
    again: bool, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise RoundError("starved.", again)

    monkeypatch.setattr("heal.guard.signal.signal", lambda *_: None)
    with pytest.raises(SystemExit, match="1"):
        guarded(work, "Again.")
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("options", [[], ["--config_file", "accelerate_config.yaml"]])
def test_accelerate_launch_takes_the_same_words(options: list[str]) -> None:
    done = run([*ACCELERATE, *options, "heal/train.py", "recipe=smok"])
    assert done.returncode != 0  # the launcher's own
    assert "did you mean 'smoke'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_several_processes_are_refused_in_one_line(tmp_path: Path) -> None:
    line = [*PYTHON, "recipe=smoke", f"run.root={tmp_path}"]
    done = run(line, WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "2 processes were launched" in done.stderr


def test_a_launcher_that_leaves_one_thread_does_not_slow_the_run() -> None:
    done = run(
        [sys.executable, "-c", "from heal.environment import usable_cores; print(usable_cores())"], OMP_NUM_THREADS="1"
    )
    assert int(done.stdout) == usable_cores() <= (os.cpu_count() or 1)
