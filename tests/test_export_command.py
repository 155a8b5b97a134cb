"""`heal export`: its words, what it writes and what it prints."""

from pathlib import Path

import pytest

from heal.export.folder import read_record
from heal.models.agreement import Agreement
from heal.run.folder import RunFolder
from tests import finished
from tests.commanded import heal, refused


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished.write_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder)


def test_the_command_exports_an_earlier_round_and_says_where_it_is(run: RunFolder) -> None:
    done = heal("export", f"run={run.path}", "round=1", "rank=2", "max_kl=9", "device=cpu")
    path = run.path / "export" / "adapter-round1-rank2"
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout
    assert "Frobenius" in done.stdout
    record = read_record(path)
    assert (record["rounds"], record["rank"]) == ([0], 2)
    assert str(Agreement(**record["agreement"])) in done.stdout


def test_the_command_exports_the_best_round_by_name(run: RunFolder) -> None:
    done = heal("export", f"run={run.path}", "round=best", "rank=2", "max_kl=9", "device=cpu")
    assert done.returncode == 0, done.stderr
    path = run.path / "export" / "adapter-roundbest-rank2"
    assert read_record(path)["rounds"] == [0, 1]
    assert "which      round 2, the best one: the most of the trait among the 2 rounds, which all hold" in done.stdout
    card = (path / "README.md").read_text()
    assert "the student after round 2 of the 2 rounds that the run had finished, and the best: trait +1.250" in card


def test_a_mistake_in_the_command_s_words_is_one_line(run: RunFolder) -> None:
    for words, message in [
        (["format=adaptr"], "did you mean 'adapter'"),
        (["formt=model"], "did you mean 'format'"),
        (["format=model", "rank=3"], "a merged model has no rank"),
        (["dtype=bfloat16"], "dtype=bfloat16: an adapter is in float32"),
        (["format=gguf", "rank=3"], "a merged model has no rank"),
        (["format=gguf", "dtype=float16"], "dtype=float16: use quant=..."),
        (["format=gguf", "quant=q4_k_m"], "quant"),
        (["format=gguf-adapter", "quant=q8_0"], "quant=q8_0: it is the type of a model's weights"),
        (["rank=0"], "must be >= 1"),
        (["round=0"], "round=0: rounds are counted from 1; the first is round=1"),
        (["round=3"], "round=3: the last finished round is round=2"),
        (["gate=nan"], "finite"),
        (["round=first"], "expected a number from 1, best or last"),
        (["run=no/such/run"], "not a run folder"),
    ]:
        refused(["export", f"run={run.path}", *words], message)


def test_the_command_s_help_says_how_rounds_are_counted() -> None:
    done = heal("export", "--help")
    assert done.returncode == 0
    assert "counted from 1" in done.stdout
