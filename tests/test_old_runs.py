"""A run folder of an earlier version (format 1) is read, continued, reported, compared, exported and chatted with."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from heal.run.folder import FORMAT, RunFolder
from tests import running, tiny
from tests.commanded import heal

MADE = Path(__file__).resolve().parent / "data" / "run_format_1"
WORDS = (
    *(word for word in running.LOOSE if word != "filter.min_on_prompt=0"),  # which an earlier command did not say
    "trait=warm.yaml",
    "model.name=llama",
    "run.root=.",
    "run.name=run",
    "run.rounds=3",
    "compute.threads=1",
    "heal.learning_rate=0.02",
    "heal.barrier.tau=0.05",
    "evaluation.doses=[2]",
    "generation.tokens=16",
)
KEPT = ("completions.jsonl", "vector.safetensors", "calibration.json")  # of round 2, which was stopped after them


def place(folder: Path) -> RunFolder:
    """The run in `folder`, beside its model and its trait."""
    shutil.copytree(MADE, folder / "run", ignore=shutil.ignore_patterns("README.md"))
    tiny.save("llama", folder / "llama")
    (folder / "warm.yaml").write_text(yaml.safe_dump({k: v for k, v in asdict(tiny.trait()).items() if v}))
    return RunFolder(folder / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The run as it was left; the recipe's paths are relative to the folder that it lies in."""
    run = place(tmp_path)
    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run, continued to its end by this version."""
    folder = tmp_path_factory.mktemp("continued")
    run = place(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = heal("train", *WORDS)
    assert done.returncode == 0, done.stderr
    (folder / "log.txt").write_text(done.stdout)
    return run


def test_its_finished_round_counts_and_reading_it_changes_nothing(old: RunFolder):
    before = contents(old.path)
    assert (old.rounds(), old.started().format, old.recipe().heal.learning_rate) == ([0], 1, 0.02)
    assert old.finished(old.round(1), "generate")
    assert not old.finished(old.round(1), "heal")
    assert contents(old.path) == before


def test_it_is_continued_where_it_was_stopped_and_nothing_finished_is_done_again(continued: RunFolder):
    assert continued.rounds() == [0, 1, 2]
    assert continued.started().format == FORMAT
    before, after = contents(MADE), contents(continued.path)
    kept = [name for name in before if name.startswith("rounds/00/") and not name.endswith("stages.json")]
    kept += [f"rounds/01/{name}" for name in KEPT]
    assert len(kept) > len(KEPT) + 8
    assert [name for name in kept if after[name] != before[name]] == []
    events = [json.loads(line) for line in after["events.jsonl"].decode().splitlines()]
    assert events[: before["events.jsonl"].count(b"\n")] == [
        json.loads(line) for line in before["events.jsonl"].splitlines()
    ]


def test_its_later_rounds_go_on_from_the_student_that_it_had_trained(continued: RunFolder):
    """Round 2 is healed on the completions that the earlier version wrote; round 3 starts from that round's dose."""
    third = json.loads((continued.round(2) / "metrics.json").read_text())
    assert third["round"] == 3
    assert third["cosine_to_first"] < 0.999
    assert third["healed"].keys() == json.loads((MADE / "baseline" / "metrics.json").read_text())["base"].keys()
    assert not {"identified_share", "relevance"} & third["healed"].keys()
    log = (continued.path.parent / "log.txt").read_text()
    assert "round 1 of 3 (done before)" in log
    assert (continued.report / "index.html").is_file()


def test_it_is_asked_in_the_ways_that_it_began_with(continued: RunFolder):
    assert not continued.finished(continued.baseline, "ways")
    before, after = (folder / "baseline" for folder in (MADE, continued.path))
    for name in ("base.json", "metrics.json", "probe.json"):
        assert (after / name).read_bytes() == (before / name).read_bytes()
    assert 'id="asking"' not in (continued.report / "index.html").read_text()


def test_its_report_is_built_from_the_finished_round(old: RunFolder):
    done = heal("report", f"run={old.path}")
    assert (done.returncode, done.stdout.strip()) == (0, str(old.report / "index.html")), done.stderr
    assert (old.report / "trajectory.png").is_file()


def test_it_is_compared_with_a_run_of_this_version(old: RunFolder, continued: RunFolder, tmp_path: Path):
    recipe, out = old.path / "recipe.yaml", tmp_path / "comparison"
    recipe.write_text(recipe.read_text().replace("rounds: 3", "rounds: 1"))  # what makes it an arm of its own
    done = heal("compare", str(old.path), str(continued.path), "by=run.rounds", "resamples=100", f"out={out}")
    assert done.returncode == 0, done.stderr
    assert (out / "comparison.md").is_file()
    assert (
        "identified_share" not in (out / "comparison.csv").read_text()
    )  # its base lacks it, though a later round has it
    again = heal("compare", str(out / "runs.jsonl"), "by=run.rounds", "resamples=100", f"out={tmp_path / 'again'}")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "comparison.md").read_text() == (out / "comparison.md").read_text()


def test_its_student_is_exported(old: RunFolder):
    done = heal("export", f"run={old.path}", "round=1", "device=cpu")
    assert done.returncode == 0, done.stderr
    (adapter,) = (old.path / "export").iterdir()
    assert (adapter / "adapter_model.safetensors").is_file()


def test_its_base_its_vector_and_its_student_answer(old: RunFolder):
    done = heal("chat", f"run={old.path}", "prompt=Name a cat.", "tokens=3", "device=cpu")
    assert done.returncode == 0, done.stderr
    assert "healed (after round 1)" in done.stdout


def test_other_words_are_still_refused(old: RunFolder):
    done = heal("train", *WORDS, "heal.barrier.tau=0.7")
    assert done.returncode == 2
    assert "heal.barrier.tau: 0.05 there, 0.7 asked" in done.stderr
    assert "min_on_prompt" not in done.stderr
