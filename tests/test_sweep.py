"""A sweep: which runs it makes, and that it continues without repeating."""

import subprocess
from pathlib import Path

import pytest

from heal.errors import UserError
from heal.evaluation.metrics import METRICS
from heal.recipe import load_recipe
from heal.records import json_bytes, record_bytes
from heal.run.files import write_atomic
from heal.run.folder import EXPORT_RECORD, STEPS, RunFolder
from heal.run.open import facts_of
from heal.studies.sweep import Cell, cells, run_cells, split_values
from heal.trait import load_trait
from tests.commanded import heal
from tests.finished import round_metrics
from tests.running import words

ROOT = Path(__file__).resolve().parent.parent


def test_a_sweep_is_every_combination_with_the_last_key_changing_fastest():
    found = cells(["recipe=kl_rev_rmse,nll", "seed=0,1,2", "rounds=8"])
    assert [cell.folder.name for cell in found] == [
        f"{recipe}-love-embedded-s{seed}" for recipe in ("kl_rev_rmse", "nll") for seed in (0, 1, 2)
    ]
    assert all(cell.rounds == 8 for cell in found)
    assert "run.rounds=8" in found[0].words
    assert "run.seed=1" in found[1].words


def test_a_key_that_the_default_name_lacks_joins_it():
    found = cells(["recipe=nll", "heal.barrier.strength=0.1,0.3", "heal.rank=8"])
    assert [cell.folder.name for cell in found] == [
        "nll-love-embedded-s0-strength=0.1",
        "nll-love-embedded-s0-strength=0.3",
    ]


def test_a_tilde_in_the_root_of_a_sweep_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert only("recipe=nll", "run.root=~/runs").folder == tmp_path / "runs" / "nll-love-embedded-s0"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("[0.5, 1],[1]", ["[0.5, 1]", "[1]"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("", [""]),
    ],
)
def test_commas_separate_values_outside_brackets_and_quotes(text: str, values: list[str]):
    assert split_values(text) == values


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (["recipe=kl_rev_rmse,nl"], "no such recipe"),
        (["trait=lov"], "no such trait"),
        (["heal.rnk=8"], "unknown key 'heal.rnk'"),
        (["recipe"], "expected key=value"),
        (["seed=1,1"], "the same run"),
        (["seed=0,1", "run.name=x"], "run.name=x: names one run, and the sweep has 2; leave it out"),
    ],
)
def test_a_mistake_in_any_cell_is_found_before_anything_runs(line: list[str], complaint: str):
    with pytest.raises(UserError, match=complaint):
        cells(line)


def finish(cell: Cell, rounds: int = 1, exported: int = 1, grows: bool = True) -> None:
    """What a run leaves, as far as a sweep looks at it.

    Args:
        cell: the run.
        rounds: finished ones.
        exported: rounds in the adapter; 0: it is not written.
        grows: whether there is more of the trait in each round.
    """
    run, recipe = RunFolder(cell.folder), load_recipe(cell.words)
    run.start(recipe, facts_of(recipe, load_trait(recipe.trait), "float32"))
    for index in range(rounds):
        for step in STEPS:
            content = round_metrics(index if grows else 0)
            run.finish(run.round(index), step, {METRICS: record_bytes(content)}, 0.0)
    write_atomic(run.report / "index.html", b"")
    if exported:
        write_atomic(run.adapter / EXPORT_RECORD, json_bytes({"rounds": list(range(exported))}))


def only(*line: str) -> Cell:
    """The one cell of a sweep."""
    (cell,) = cells(line)
    return cell


def test_a_finished_run_of_other_settings_is_no_cell_of_the_sweep(tmp_path: Path):
    line = ["recipe=nll", f"run.root={tmp_path}", "rounds=1"]
    finish(only(*line))
    assert only(*line).finished()
    with pytest.raises(UserError, match=r"heal\.learning_rate: \S+ there, 0\.5 asked"):
        only(*line, "heal.learning_rate=0.5").finished()


def test_a_key_that_may_change_between_two_starts_may_change_between_two_sweeps(tmp_path: Path):
    line = ["recipe=nll", f"run.root={tmp_path}", "rounds=1"]
    finish(only(*line))
    for word in ("compute.threads=3", "tracking.mode=disabled", "run.stop_on_plateau=2"):
        assert only(*line, word).finished(), word


def test_a_run_is_finished_once_its_adapter_holds_the_rounds_that_were_asked_for(tmp_path: Path):
    for case, (asked, rounds, exported, finished) in {
        "whole": (3, 3, 3, True),
        "killed in the export": (3, 3, 0, False),
        "shorter": (8, 3, 3, False),
        "three rounds continued to eight, and killed before the new adapter": (8, 8, 3, False),
        "longer": (2, 3, 3, True),
        "three rounds, then the same folder with two": (2, 3, 2, True),
        "a damaged round": (3, 2, 3, False),
    }.items():
        cell = only("recipe=nll", f"run.root={tmp_path / case.replace(' ', '_').replace(',', '')}", f"rounds={asked}")
        finish(cell, rounds, exported)
        assert cell.finished() is finished, case


def test_a_run_that_its_own_rule_stopped_is_finished(tmp_path: Path):
    for rounds, exported, finished in ((2, 2, True), (3, 2, True), (2, 0, False), (1, 1, False)):
        root = tmp_path / f"{rounds}-{exported}"
        cell = only("recipe=nll", f"run.root={root}", "rounds=8", "run.stop_on_plateau=1")
        finish(cell, rounds, exported, grows=False)
        assert cell.finished() is finished, (rounds, exported)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os.kill(os.getpid(), 9)", "killed by signal 9 (out of memory?)"),
        ("os.kill(os.getpid(), 11)", "killed by signal 11"),
        ("sys.exit('heal: starved')", "heal: starved"),
    ],
)
def test_a_failed_run_says_what_ended_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, said: str):
    (tmp_path / "train.py").write_text(f"import os, sys\nprint('  generate 3/30', flush=True)\n{end}\n")
    monkeypatch.setattr("heal.studies.sweep.TRAIN", tmp_path / "train.py")
    cell, lines = only("recipe=nll", f"run.root={tmp_path}", "rounds=1"), []
    assert run_cells([cell], 1, 1, lines.append) == [cell]
    assert lines == [
        f"{cell.folder.name}: started, 0 of 1 round done; {cell.log}",
        f"{cell.folder.name}: failed: {said}",
    ]


def test_one_run_is_counted_as_one(tmp_path: Path):
    line = ["recipe=nll", f"run.root={tmp_path}", "rounds=1"]
    finish(only(*line))
    assert sweep(line).stdout.splitlines()[:2] == ["1 run, 1 at a time", "1 of 1 run was finished before"]


def sweep(line: list[str]) -> subprocess.CompletedProcess[str]:
    return heal("sweep", *line)


def test_a_sweep_runs_its_cells_and_repeats_nothing(tiny_folder: Path, tmp_path: Path):
    line = [*words(tiny_folder, tmp_path), "run.rounds=1", "seed=0,1", "jobs=2"]
    first = sweep(line)
    assert first.returncode == 0, first.stdout + first.stderr
    folders = [cell.folder for cell in cells(line[:-1])]
    assert len(folders) == 2
    assert all(RunFolder(folder).rounds() == [0] for folder in folders)
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}
    again = sweep(line)
    assert again.returncode == 0
    assert "2 of 2 runs were finished before" in again.stdout
    after = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert after == before


def test_a_failed_cell_is_named_with_its_reason_and_the_others_go_on(tiny_folder: Path, tmp_path: Path):
    line = [*words(tiny_folder, tmp_path), "run.rounds=1", "filter.min_train=2,8", "filter.min_words=500"]
    done = sweep([*line, "filter.keep_floor=0"])
    assert done.returncode == 1
    assert done.stdout.count("failed: ") == 2
    assert "survived the filter" in done.stdout
    assert "2 of 2 runs failed" in done.stderr
