"""A sweep: which runs it makes, and that it continues without repeating."""

from pathlib import Path

import pytest

from heal.errors import UserError
from heal.recipe import load_recipe
from heal.records import json_bytes
from heal.run.facts import Facts
from heal.run.files import write_atomic
from heal.run.folder import EXPORT_RECORD, RunFolder
from heal.studies.sweep import Cell, cells, run_cells, split_values, visible_gpus
from heal.trait import load_trait
from tests.commanded import heal, refused
from tests.finished import metrics
from tests.running import words


def test_a_sweep_is_every_combination_with_the_last_key_changing_fastest():
    planned = cells(["recipe=kl_rev_rmse,nll", "seed=0,1,2", "rounds=8"])
    assert [cell.folder.name for cell in planned] == [
        f"{recipe}-love-embedded-s{seed}" for recipe in ("kl_rev_rmse", "nll") for seed in (0, 1, 2)
    ]
    assert all(cell.rounds == 8 for cell in planned)
    assert "run.rounds=8" in planned[0].words
    assert "run.seed=1" in planned[1].words


def test_a_key_that_the_default_name_lacks_joins_it():
    planned = cells(["recipe=nll", "heal.barrier.strength=0.1,0.3", "heal.rank=8"])
    assert [cell.folder.name for cell in planned] == [
        "nll-love-embedded-s0-strength=0.1",
        "nll-love-embedded-s0-strength=0.3",
    ]


def test_a_tilde_in_the_root_of_a_sweep_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert only("recipe=nll", "run.root=~/runs").folder == tmp_path / "runs" / "nll-love-embedded-s0"


def test_commas_separate_values_outside_brackets_and_quotes():
    cases = {
        "a": ["a"],
        "a,b": ["a", "b"],
        "[0.5, 1],[1]": ["[0.5, 1]", "[1]"],
        "'a,b',c": ["'a,b'", "c"],
        "": [""],
    }
    for text, values in cases.items():
        assert split_values(text) == values, text


def test_a_persona_is_one_value_with_its_commas_and_the_sign_of_a_trait_is_in_the_name_of_its_run():
    sentences = ["positive=You are warm, kind.", "negative=You are cold, curt."]
    planned = cells(["recipe=nll", *sentences, "sign=1,-1"])
    assert [cell.folder.name for cell in planned] == [
        "nll-warm-not-cold-embedded-s0",
        "nll-warm-not-cold-opposite-embedded-s0",
    ]
    assert all({*sentences} < {*cell.words} for cell in planned)


def test_a_mistake_in_any_cell_is_found_before_anything_runs():
    mistakes = [
        (["recipe=kl_rev_rmse,nl"], "no such recipe"),
        (["trait=lov"], "no such trait"),
        (["heal.rnk=8"], "unknown key 'heal.rnk'"),
        (["recipe"], "expected key=value"),
        (["seed=1,1"], "the same run"),
        (["seed=0,1", "run.name=x"], "run.name=x: names one run, and the sweep has 2; leave it out"),
    ]
    for line, complaint in mistakes:
        refused(["sweep", *line], complaint)
    refused(["sweep", "recipe=nll", "jobs=0"], "jobs=0: out of range, must be >= 1")


def finish(cell: Cell, rounds: int = 1, exported: int = 1, grows: bool = True) -> None:
    """What a run leaves, as far as a sweep looks at it.

    Args:
        cell: the run.
        rounds: finished ones.
        exported: rounds in the adapter; 0: it is not written.
        grows: whether there is more of the trait in each round.
    """
    run, recipe = RunFolder(cell.folder), load_recipe(cell.words)
    run.start(recipe, Facts("float32", load_trait(recipe.trait)))
    for index in range(rounds):
        for step in run.steps():
            content = metrics(index if grows else 0)
            run.finish(run.round(index), step, {"metrics.json": json_bytes(content)}, 0.0)
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
    cases = [
        (3, 3, 3, True),
        (3, 3, 0, False),  # killed in the export
        (8, 3, 3, False),
        (8, 8, 3, False),  # three rounds continued to eight, and killed before the new adapter
        (2, 3, 3, True),
        (2, 3, 2, True),  # three rounds, then the same folder with two
        (3, 2, 3, False),  # a damaged round
    ]
    for number, (wanted, rounds, exported, finished) in enumerate(cases):
        cell = only("recipe=nll", f"run.root={tmp_path / str(number)}", f"rounds={wanted}")
        finish(cell, rounds, exported)
        assert cell.finished() is finished, (wanted, rounds, exported)


def test_a_run_that_its_own_rule_stopped_is_finished(tmp_path: Path):
    for rounds, exported, finished in ((2, 2, True), (3, 2, True), (2, 0, False), (1, 1, False)):
        root = tmp_path / f"{rounds}-{exported}"
        cell = only("recipe=nll", f"run.root={root}", "rounds=8", "run.stop_on_plateau=1")
        finish(cell, rounds, exported, grows=False)
        assert cell.finished() is finished, (rounds, exported)


def test_a_failed_run_says_what_ended_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("heal.studies.sweep.TRAIN", tmp_path / "train.py")
    endings = {
        "os.kill(os.getpid(), 9)": "killed by signal 9 (out of memory?)",
        "os.kill(os.getpid(), 11)": "killed by signal 11",
        "sys.exit('heal: starved')": "heal: starved",
    }
    for number, (end, said) in enumerate(endings.items()):
        (tmp_path / "train.py").write_text(f"import os, sys\nprint('  generate 3/30', flush=True)\n{end}\n")
        cell, lines = only("recipe=nll", f"run.root={tmp_path / str(number)}", "rounds=1"), []
        assert run_cells([cell], 1, 1, [], lines.append) == [cell]
        assert lines == [
            f"{cell.folder.name}: started, 0 of 1 round done; {cell.log}",
            f"{cell.folder.name}: failed: {said}",
        ]


def test_runs_side_by_side_have_a_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where GPUs are numbered by a scheduler, and where the first to end makes room for a third."""
    script = tmp_path / "train.py"
    script.write_text("import os, time\ntime.sleep(1)\nprint(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True)\n")
    monkeypatch.setattr("heal.studies.sweep.TRAIN", script)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_gpus() == ["3", "5"]
    planned = cells(["recipe=nll", f"run.root={tmp_path / 'runs'}", "rounds=1", "seed=0,1,2"])
    lines: list[str] = []
    run_cells(planned, 2, 2, visible_gpus(), lines.append)
    used = [cell.log.read_text().strip() for cell in planned]
    assert set(used[:2]) == {"3", "5"}
    assert used[2] in used[:2]
    assert [line.split(", ")[0].rpartition(" ")[2] for line in lines if "started" in line] == used
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert visible_gpus() == []


def test_one_run_is_counted_as_one(tmp_path: Path):
    line = ["recipe=nll", f"run.root={tmp_path}", "rounds=1"]
    finish(only(*line))
    assert heal("sweep", *line).stdout.splitlines()[:2] == ["1 run, 1 at a time", "1 of 1 run was finished before"]


def test_a_sweep_runs_its_cells_and_repeats_nothing(tiny_folder: Path, tmp_path: Path):
    line = [*words(tiny_folder, tmp_path), "run.rounds=1", "seed=0,1", "compute.threads=1", "jobs=2"]
    first = heal("sweep", *line)
    assert first.returncode == 0, first.stdout + first.stderr
    folders = [cell.folder for cell in cells(line[:-1])]
    assert len(folders) == 2
    assert all(RunFolder(folder).rounds() == [0] for folder in folders)
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}
    again = heal("sweep", *line)
    assert again.returncode == 0
    assert "2 of 2 runs were finished before" in again.stdout
    after = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert after == before


def test_a_failed_cell_is_named_with_its_reason_and_the_others_go_on(tiny_folder: Path, tmp_path: Path):
    line = [*words(tiny_folder, tmp_path), "run.rounds=1", "compute.threads=1", "filter.min_train=2,8"]
    done = heal("sweep", *line, "filter.min_words=500", "filter.keep_floor=0")
    assert done.returncode == 1
    assert done.stdout.count("failed: ") == 2
    assert "survived the filter" in done.stdout
    assert "2 of 2 runs failed" in done.stderr
