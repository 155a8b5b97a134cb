"""What a round is followed by: the numbers that go to W&B and the lines on the console."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from heal.config import EvaluationConfig, ExportConfig
from heal.console import Console
from heal.evaluation.metrics import METRICS, Coherence, Verdict
from heal.evaluation.results import OUTPUTS
from heal.evaluation.signal import limits_of, signals
from heal.evaluation.stats import Estimate
from heal.export.folder import read_record
from heal.generation.collect import Completion
from heal.outcome import base_values, deliver, interval_rows, round_values, show_round, track_round
from heal.records import jsonl_bytes, record_bytes
from heal.run.folder import RunFolder
from heal.run.manifest import JUDGE
from heal.run.session import Session
from heal.steps.baseline import Baseline
from heal.tracking.charts import charts
from heal.tracking.tracker import Tracker
from tests import finished
from tests.finished import round_metrics


def test_every_number_of_the_metrics_is_logged_under_its_name_there():
    metrics = round_metrics(0)
    values = round_values(metrics)
    assert all(isinstance(value, float | int) for value in values.values())
    for part in ("dose", "generation", "training"):
        numbers = {
            name: value for name, value in asdict(getattr(metrics, part)).items() if isinstance(value, float | int)
        }
        assert numbers == {name: values[f"{part}/{name}"] for name in numbers}
        assert numbers, part
    for stage in ("steered", "healed"):
        for name, signal in getattr(metrics, stage).items():
            logged = [values[f"{stage}/{name}{end}"] for end in ("", "_low", "_high", "_delta")]
            assert logged == [signal.value, signal.low, signal.high, signal.delta.value], name


def test_coherence_is_logged_as_the_margin_of_the_worst_signal_and_the_trait_by_its_name():
    values = round_values(replace(round_metrics(0), coherence=Coherence("p_ans_any", -0.25)))
    assert values["coherence"] == -0.25
    assert values["trait"] == values["healed/persona_log_ratio"]


def test_every_signal_is_logged_with_whether_it_is_valid():
    metrics = round_metrics(0)
    values = round_values(metrics)
    logged = {name.removeprefix("valid/"): value for name, value in values.items() if name.startswith("valid/")}
    assert logged == {name: float(name in metrics.valid) for name in metrics.healed}
    assert logged["tail_perplexity"] == 1.0
    assert logged["p_ans_any"] == 0.0


def test_a_round_without_the_steered_stage_logs_the_same_but_for_it():
    with_it, without = (round_values(round_metrics(0, steered)) for steered in (True, False))
    assert without == {name: value for name, value in with_it.items() if not name.startswith("steered/")}


def test_the_cost_of_coherence_is_logged_where_the_trait_moved():
    metrics = round_metrics(2)
    assert round_values(metrics)["coh_cost"] == pytest.approx(0.375 / 1.125)
    still = replace(metrics.trait, delta=Estimate(0.1, -0.1, 0.3, 4))
    assert "coh_cost" not in round_values(replace(metrics, healed=metrics.healed | {"persona_log_ratio": still}))


def test_trackers_draw_a_dozen_charts_that_begin_at_base_and_fold_the_rest_away():
    """Every signal that heal knows is there: intervals and validity are a table's, nothing is drawn twice."""
    metrics = round_metrics(0)
    summary = dict.fromkeys(signals(), metrics.trait)
    values = round_values(replace(metrics, healed=summary, steered=summary))
    drawn = charts(values)
    seen = {name for name in drawn if name.startswith("round/")}
    assert 10 <= len(seen) <= 14
    assert {"round/trait", "round/coherence", "round/tail_perplexity", "round/c_star", "round/D_mean"} <= seen
    assert not [name for name in drawn if name.endswith(("_low", "_high", "_delta")) or name.startswith("valid/")]
    assert len(drawn) == len([name for name in values if charts({name: 0.0})]) - 3 * 2 * len(summary) - 1
    assert all("/" in name for name in drawn)
    measured = {name: replace(found, delta=Estimate(0, 0, 0, 4)) for name, found in finished.baseline().base.items()}
    limits = limits_of(EvaluationConfig()) | {"repetition_share": 0.75}
    base = charts(base_values(Baseline(None, limits, None, replace(finished.baseline(), base=measured))))
    assert base["round/coherence"] == 1
    assert base["round/trait"] == measured["persona_log_ratio"].value
    assert base["round/tail_perplexity"] == measured["tail_perplexity"].value


def test_one_table_holds_every_interval_of_base_and_all_rounds():
    rounds = [round_metrics(0, steered=False), round_metrics(1)]
    rows = interval_rows(finished.baseline(), rounds)
    stages = [(0, "base"), (1, "healed"), (2, "steered"), (2, "healed")]
    assert list(dict.fromkeys((row["round"], row["stage"]) for row in rows)) == stages
    assert len(rows) == len(stages) * len(rounds[0].healed)
    (row,) = [row for row in rows if (row["round"], row["stage"], row["signal"]) == (2, "healed", "persona_log_ratio")]
    trait = rounds[1].trait
    assert (row["value"], row["low"], row["high"]) == (trait.value, trait.low, trait.high)
    assert (row["delta"], row["delta_low"], row["delta_high"]) == (trait.delta.value, trait.delta.low, trait.delta.high)
    assert {row["signal"]: row["valid"] for row in rows}["p_ans_any"] is False


def test_the_round_s_table_shows_the_margin_and_which_signal_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    session = SimpleNamespace(console=Console(), folder=RunFolder(tmp_path))
    show_round(session, replace(round_metrics(0), coherence=Coherence("alive_share", 0.375)))
    assert "coherence 0.38 (alive_share)" in capsys.readouterr().out


def test_the_table_of_completions_says_how_much_each_says_about_its_prompt_where_that_was_asked(tmp_path: Path):
    told: dict[str, list[dict]] = {}

    class Told(Tracker):
        def table(self, name, rows, number=None):
            told[f"{name} {number}"] = list(rows)

    folder = RunFolder(tmp_path)
    kept = Completion(0, "?", 1.0, (1,), (2,), "!", True, 4.0, 0.1, (), on_prompt=0.75)
    off = replace(kept, dropped=("off prompt",), on_prompt=0.125)
    older = {name: value for name, value in asdict(kept).items() if name != "on_prompt"}
    files = {"completions.jsonl": jsonl_bytes([asdict(kept), asdict(off), older]), OUTPUTS: b""}
    folder.finish(folder.round(0), JUDGE, files, 0.0)
    session = SimpleNamespace(folder=folder, tracker=Told())
    track_round(session, round_metrics(0), new=True)
    rows = told["completions 1"]
    assert [row["on_prompt"] for row in rows] == [0.75, 0.125, None]
    assert [(row["kept"], row["dropped"]) for row in rows] == [(True, ""), (False, "off prompt"), (True, "")]


# What is delivered.


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Two finished rounds; its report is not built."""
    monkeypatch.setattr("heal.report.build.build_report", lambda folder: folder.report / "index.html")
    return finished.write_run(tmp_path / "run", tiny_folder)


def delivered(run: RunFolder, rounds: int, new: int = 0, export: str = "best") -> None:
    """The end of a start that went through so many rounds."""
    student = finished.student(run, rounds - 1)
    recipe = replace(student.recipe, export=ExportConfig(export))
    parts = (recipe, student.trait, run, student.model, student.accumulator)
    deliver(Session(*parts, Console(), Tracker()), [round_metrics(index) for index in range(rounds)], new, 160.0)


def test_a_start_of_fewer_rounds_than_the_folder_holds_delivers_those_and_says_so(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
):
    delivered(run, 1)
    printed = capsys.readouterr().out
    assert read_record(run.adapter)["rounds"] == run.exported() == [0]
    assert "made in 1 round of" in (run.adapter / "README.md").read_text()
    assert "the folder holds 2, all in the report; verdict, best round and adapter are of the first 1" in printed
    assert f"heal chat run={run.path} round=1" in printed


def test_a_run_delivers_its_best_round_unless_asked_for_the_last(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Round 2 is past a limit here; the adapter is that of round 1, and says so wherever it is met."""
    broken = replace(round_metrics(1), verdict=Verdict("incoherent", "looping answers 33% > 0.25"))
    run.finish(run.round(1), JUDGE, {METRICS: record_bytes(broken)}, 0.0)
    delivered(run, 2)
    printed, card = capsys.readouterr().out, (run.adapter / "README.md").read_text()
    assert (run.exported(), run.delivered()) == ([0], [0, 1])
    assert "use        round 1: trait +0.250 [+0.250, +0.250] nats/token over base; the only one of 2 rounds" in printed
    assert f"adapter    {run.adapter} (round 1 of 2)" in printed
    assert f"heal chat run={run.path}\n" in printed
    assert "It is the student after round 1 of the 2 rounds that the run had finished, and the best" in card

    delivered(run, 2, export="last")
    card = (run.adapter / "README.md").read_text()
    assert run.exported() == [0, 1]
    assert f"heal chat run={run.path} round=2" in capsys.readouterr().out
    assert "It is the student after round 2 of the 2 rounds that the run had finished. The best is round 1" in card


def test_a_start_of_all_rounds_delivers_them_all_and_counts_those_that_it_made(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
):
    delivered(run, 2, new=1)
    printed = capsys.readouterr().out
    assert run.exported() == [0, 1]
    assert "the folder holds" not in printed
    assert "160 s for 1 round in this start" in printed
