"""What a round is followed by: the numbers that go to W&B and the lines on the console."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from heal.console import Console
from heal.export.folder import read_record
from heal.outcome import deliver, round_values, show_round
from heal.run.folder import RunFolder
from heal.run.student import Session
from heal.tracking.tracker import Tracker
from tests import finished
from tests.finished import metrics as finished_metrics


def metrics(**changes: Any) -> dict[str, Any]:
    found = finished_metrics(0) | changes
    found["generation"] = found["generation"] | {"ended_share": 0.25}
    found["training"] = {"loss": 1.5, "D_mean": 0.25, "barrier_on": 0.5}
    return found


def test_every_signal_is_logged_with_whether_it_is_valid():
    found = metrics()
    values = round_values(found)
    logged = {name.removeprefix("valid/"): value for name, value in values.items() if name.startswith("valid/")}
    assert logged == {name: float(name in found["valid"]) for name in found["healed"]}
    assert logged["tail_perplexity"] == 1.0
    assert logged["p_ans_any"] == 0.0


def test_the_margin_of_coherence_is_logged():
    assert round_values(metrics(coherence={"worst": "p_ans_any", "margin": -0.25}))["coherence_margin"] == -0.25


@pytest.mark.parametrize("stage", ["steered", "healed"])
def test_every_signal_of_a_stage_is_logged_with_its_interval_and_its_change(stage: str):
    found = metrics()
    values = round_values(found)
    for name, entry in found[stage].items():
        keys = [f"{stage}/{name}{end}" for end in ("", "_low", "_high", "_delta")]
        expected = [entry["value"], entry["low"], entry["high"], entry["delta"]["value"]]
        assert [values[key] for key in keys] == expected


def test_a_round_without_the_steered_stage_logs_the_same_but_for_it():
    found = metrics()
    with_it, without = round_values(found), round_values(found | {"steered": None})
    assert without == {name: value for name, value in with_it.items() if not name.startswith("steered/")}


def test_the_cost_of_coherence_is_logged_where_there_is_one():
    cost = {"ratio": 0.5, "d_coherence": -0.1, "d_trait": 0.2}
    assert round_values(metrics(coh_cost=cost))["coh_cost"] == 0.5
    assert "coh_cost" not in round_values(metrics())


def test_everything_that_is_logged_is_a_number():
    assert all(isinstance(value, float | int) for value in round_values(metrics()).values())


def test_the_round_s_table_shows_the_margin_and_which_signal_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    session = SimpleNamespace(console=Console(), folder=RunFolder(tmp_path))
    show_round(session, metrics(coherence={"worst": "alive_share", "margin": 0.375}))
    assert "0.38 (alive_share)" in capsys.readouterr().out


# What is delivered.


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Two finished rounds; its report is not built."""
    monkeypatch.setattr("heal.report.build.build_report", lambda folder: folder.report / "index.html")
    return finished.write_run(tmp_path / "run", tiny_folder)


def delivered(run: RunFolder, rounds: int, new: int = 0) -> None:
    """The end of a start that went through so many rounds."""
    student = finished.student(run, rounds - 1)
    parts = (student.recipe, student.trait, run, student.model, student.accumulator)
    deliver(Session(*parts, Console(), Tracker()), [finished_metrics(index) for index in range(rounds)], new, 160.0)


def test_a_start_of_fewer_rounds_than_the_folder_holds_delivers_those_and_says_so(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
):
    delivered(run, 1)
    printed = capsys.readouterr().out
    assert read_record(run.adapter)["rounds"] == run.exported() == [0]
    assert "made in 1 round of" in (run.adapter / "README.md").read_text()
    assert "the folder holds 2, all in the report; verdict, best round and adapter are of the first 1" in printed
    assert f"heal chat run={run.path} round=1" in printed


def test_a_start_of_all_rounds_delivers_them_all_and_counts_those_that_it_made(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
):
    delivered(run, 2, new=1)
    printed = capsys.readouterr().out
    assert run.exported() == [0, 1]
    assert "the folder holds" not in printed
    assert "160 s for 1 round in this start" in printed
