"""The whole loop on a tiny model: what it leaves, and that killing it anywhere changes nothing."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from heal.healing.barrier import START, Barrier
from heal.healing.log import read_log
from heal.models.load import load_language_model
from heal.records import read_json
from heal.run.files import sha256
from heal.run.folder import STEPS, RunFolder
from heal.run.manifest import JUDGE, MANIFEST
from heal.run.student import load_student
from heal.steps.heal import LOG
from tests import running, tiny
from tests.closeness import assert_near

# What later rounds go on from: lambda, which follows D above and below this tau, and where to steer.
CARRIED = ("heal.barrier.strength=auto", "heal.barrier.tau=0.001", "steer.band=auto", "steer.method=auto")
BASELINE = ("probe", "ways", "base", "prompted", "opposite", "judge")


def run_folder(root: Path) -> RunFolder:
    return RunFolder(root / "there")


def results(folder: RunFolder) -> dict[str, str]:
    """Digest of every file that a run's steps wrote."""
    found = {}
    for part in (folder.baseline, folder.place, folder.path / "rounds"):
        for path in sorted(part.rglob("*")):
            if path.is_file() and path.name != MANIFEST:
                found[str(path.relative_to(folder.path))] = sha256(path)
    return found


def steps_done(folder: RunFolder) -> int:
    """How many steps the manifests of a run name."""
    manifests = [folder.baseline / MANIFEST, *(folder.round(r) / MANIFEST for r in range(2))]
    return sum(len(read_json(path)) for path in manifests if path.is_file())


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of two rounds that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    log = root / "log.txt"
    assert running.finish(running.words(tiny_folder, root, "run.name=there", *CARRIED), log) == 0, log.read_text()
    return run_folder(root)


def test_a_run_leaves_every_file_that_the_readme_names(whole: RunFolder) -> None:
    expected = ["recipe.yaml", "events.jsonl", "report/index.html", "report/trajectory.png"]
    expected += [f"baseline/{name}" for name in ("probe.json", "metrics.json", "outputs.jsonl")]
    expected += [f"baseline/{name}.json" for name in BASELINE[1:-1]]
    for r in ("00", "01"):
        names = ("vector.safetensors", "calibration.json", "completions.jsonl", "metrics.json", "outputs.jsonl")
        expected += [f"rounds/{r}/{name}" for name in (*names, "adapter/adapter_model.safetensors")]
    assert [name for name in expected if not (whole.path / name).is_file()] == []


def test_the_baseline_is_measured_before_any_round_in_this_order(whole: RunFolder) -> None:
    assert list(read_json(whole.baseline / MANIFEST)) == list(BASELINE)
    assert list(read_json(whole.round(0) / MANIFEST)) == [*STEPS[:-1], "drift", JUDGE]


def test_every_signal_is_judged_and_each_round_says_which_ones_count(whole: RunFolder) -> None:
    baseline = read_json(whole.baseline / "metrics.json")
    valid = sorted(name for name, entry in baseline["validity"].items() if entry["valid"])
    assert baseline["validity"].keys() == baseline["base"].keys()
    for r in whole.rounds():
        metrics = read_json(whole.round(r) / "metrics.json")
        assert metrics["valid"] == valid
        assert metrics["coherence"].keys() == {"worst", "margin"}
        assert metrics["coherence"]["worst"] in valid
        assert metrics["healed"].keys() == baseline["base"].keys()
        assert all(entry["role"] and entry["unit"] for entry in metrics["healed"].values())


def test_base_has_not_drifted_and_every_student_has(whole: RunFolder) -> None:
    baseline = read_json(whole.baseline / "metrics.json")
    assert baseline["base"]["neutral_kl_max"]["high"] == 0.0
    for r in whole.rounds():
        assert read_json(whole.round(r) / "metrics.json")["healed"]["neutral_kl_max"]["low"] > 0


def test_a_bfloat16_run_without_the_steered_stage_goes_through_to_report_and_adapter(
    tiny_folder: Path, tmp_path: Path
) -> None:
    log, more = tmp_path / "log.txt", ["run.rounds=1", "evaluation.steered=false", "model.dtype=bfloat16"]
    line = running.words(tiny_folder, tmp_path, "run.name=there", *more)
    assert running.finish(line, log) == 0, log.read_text()
    folder = run_folder(tmp_path)
    assert folder.rounds() == [0]
    assert read_json(folder.round(0) / "metrics.json")["steered"] is None
    assert not (folder.round(0) / "steered.json").exists()
    assert (folder.report / "index.html").is_file()
    assert "steered |" not in (folder.path / "export" / "adapter" / "README.md").read_text()


def test_lambda_follows_D_from_step_to_step_and_from_round_to_round(whole: RunFolder) -> None:
    barrier = Barrier.of_round(whole.recipe().heal.barrier, 0)
    for r in whole.rounds():
        steps = [
            step.values for step in read_log(whole.round(r) / LOG) if "ce" in step.values and step.phase == "train"
        ]
        for values in steps:
            barrier = barrier.after(values["D_mean"], values["barrier_on"])
            assert values["strength"] == barrier.strength
        assert read_json(whole.round(r) / "metrics.json")["training"]["strength"] == barrier.strength
    assert barrier.strength > START
    assert "lambda" in (whole.path.parent / "log.txt").read_text()
    assert "lambda" in (whole.report / "index.html").read_text()


def test_every_line_of_the_events_is_json_with_a_time_and_a_kind(whole: RunFolder) -> None:
    events = [json.loads(line) for line in (whole.path / "events.jsonl").read_text().splitlines()]
    assert {"start", "step", "training", "round", "end"} <= {event["kind"] for event in events}
    assert all(event["time"] > 0 for event in events)


def test_a_pipe_gets_plain_lines_and_the_last_ones_say_what_came_out_and_where(whole: RunFolder) -> None:
    printed = (whole.path.parent / "log.txt").read_text()
    assert "\x1b" not in printed
    last = printed[printed.rindex("verdict ") :]
    assert str(whole.path / "report" / "index.html") in last
    assert str(whole.path / "export" / "adapter") in last


def test_a_run_killed_in_every_step_and_continued_ends_in_the_same_bytes(
    whole: RunFolder, tiny_folder: Path, tmp_path: Path
) -> None:
    line, log = running.words(tiny_folder, tmp_path, "run.name=there", *CARRIED), tmp_path / "log.txt"
    folder, kills = run_folder(tmp_path), 0
    for done in range(len(BASELINE) + 2 * len(STEPS)):
        status = running.kill_when(line, log, lambda done=done: steps_done(folder) >= done)
        assert status in (-signal.SIGKILL, 0), log.read_text()
        kills += status == -signal.SIGKILL
    assert kills >= len(BASELINE) + len(STEPS)
    assert running.finish(line, log) == 0, log.read_text()
    assert results(folder) == results(whole)


def test_the_run_folder_alone_rebuilds_the_student_that_the_run_exported(whole: RunFolder, tiny_folder: Path) -> None:
    from peft import PeftModel

    student = load_student(whole, tiny.CPU)
    recipe = whole.recipe()
    base = load_language_model(recipe.model, torch.float32, tiny.CPU)
    exported = PeftModel.from_pretrained(base.model, whole.path / "export" / "adapter")
    ids_BT = torch.tensor([base.chat.ids("Be calm.", "Name a cat.")])
    with torch.inference_mode():
        assert_near(exported(ids_BT).logits, student.model.model(ids_BT).logits)
    assert student.accumulator.history_rank == 2 * recipe.heal.rank


def test_the_same_command_after_the_end_computes_nothing_again(whole: RunFolder, tiny_folder: Path) -> None:
    before, root = results(whole), whole.path.parent
    log = root / "again.txt"
    assert running.finish(running.words(tiny_folder, root, "run.name=there", *CARRIED), log) == 0
    printed = log.read_text()
    assert not any(line.startswith(f"  {name} ") for line in printed.splitlines() for name in STEPS)
    assert results(whole) == before


def test_another_recipe_in_the_same_folder_is_refused_and_shows_what_differs(
    whole: RunFolder, tiny_folder: Path
) -> None:
    root = whole.path.parent
    log = root / "other.txt"
    status = running.finish(running.words(tiny_folder, root, "run.name=there", *CARRIED, "heal.barrier.tau=0.7"), log)
    assert status == 2
    assert "heal.barrier.tau: 0.001 there, 0.7 asked" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_damaged_file_with_later_rounds_on_it_is_refused_by_name_before_another_round_is_made(
    tiny_folder: Path, tmp_path: Path, whole: RunFolder
) -> None:
    first = whole.round(0).relative_to(whole.path)
    # Of a step that the next needs, of none, and of where to steer.
    for name in (first / "adapter/adapter_model.safetensors", first / "drift.json", Path("place/place.json")):
        root, log = tmp_path / name.name / "runs", tmp_path / name.name / "log.txt"
        shutil.copytree(whole.path.parent, root)
        path = run_folder(root).path / name
        path.write_bytes(path.read_bytes()[:-10])
        more = ("run.name=there", f"run.root={root}", "run.rounds=3", *CARRIED)
        status = running.finish(running.words(tiny_folder, whole.path.parent, *more), log)
        assert status == 2, log.read_text()
        assert str(path) in log.read_text()
        assert not run_folder(root).round(2).exists()


def test_a_terminated_run_says_that_the_same_command_continues(tiny_folder: Path, tmp_path: Path) -> None:
    line, log = running.words(tiny_folder, tmp_path, "run.name=there"), tmp_path / "log.txt"
    folder = run_folder(tmp_path)
    status = running.kill_when(line, log, lambda: steps_done(folder) >= 3, signal.SIGTERM)
    assert status == 130
    assert "the same command continues" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_mistake_in_the_words_writes_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    line = running.words(tiny_folder, tmp_path / "runs", "heal.barier.tau=1")
    assert running.finish(line, log) == 2
    assert "did you mean 'heal.barrier.tau'?" in log.read_text()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["warm.yaml"]
