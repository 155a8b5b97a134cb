"""D for every arm: how far healing took the student from base, in one way whatever it was trained with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heal.divergence import kl_divergence
from heal.evaluation.metrics import METRICS, RoundMetrics, TrainingFigures
from heal.generation.collect import Completion
from heal.outcome import round_values
from heal.progress import silent
from heal.records import record_bytes
from heal.report.results import read_results
from heal.report.tables import round_table
from heal.steps.drift import EVERY, POSITIONS, Drift
from tests.finished import round_metrics
from tests.reported import plain, rewrite, write_run
from tests.students import student

PROMPT = (1, 5, 7)


def completion(index: int, ids: tuple[int, ...]) -> Completion:
    return Completion(index, "?", 1.0, PROMPT, ids, "!", True, 4.0, 0.1, ())


def test_drift_is_both_divergences_of_every_other_text_per_position(tiny_folder: Path):
    """Against logits that were computed text by text, without the batched scorer."""
    model, accumulator = student(tiny_folder, torch.float32, rounds=2)
    rows = [completion(index, ids) for index, ids in enumerate(((3, 4, 6) * 6, (8,), (), (9, 2), (7, 7, 3, 5)))]
    found = Drift(model, accumulator, rows, []).compute(silent).figures
    scored = [row for row in rows if row.ids][::EVERY]
    assert len(scored) == 2

    def logits(row: Completion) -> torch.Tensor:
        ids = torch.tensor([[*row.prompt_ids, *row.ids]])
        with torch.no_grad():
            return model.model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1].double()

    with accumulator.student():
        after_NV = torch.cat([logits(row) for row in scored])
    with accumulator.base():
        base_NV = torch.cat([logits(row) for row in scored])
    for name, kl_N in (("kl_fwd", kl_divergence(base_NV, after_NV)), ("kl_rev", kl_divergence(after_NV, base_NV))):
        spread = found.completions[name]
        by_hand = (kl_N.mean(), kl_N.square().mean().sqrt(), kl_N.quantile(0.95), kl_N.max())
        for value, expected in zip((spread.mean, spread.rmse, spread.p95, spread.max), by_hand, strict=True):
            assert value == pytest.approx(float(expected), rel=1e-3), name
        assert spread.n == sum(len(row.ids) for row in scored)
        assert spread.max > 1e-3
        for stretch in found.by_position["completions"] if name == "kl_rev" else ():
            rows_N = kl_N.split([len(row.ids) for row in scored])
            here_N = torch.cat([row_N[stretch.first - 1 : stretch.last] for row_N in rows_N])
            assert stretch.n == len(here_N)
            for value, expected in ((stretch.mean, here_N.mean()), (stretch.p95, here_N.quantile(0.95))):
                assert value == pytest.approx(float(expected), rel=1e-3)
    stretches = [(stretch.first, stretch.last) for stretch in found.by_position["completions"]]
    assert stretches == [(1, POSITIONS), (POSITIONS + 1, 2 * POSITIONS), (2 * POSITIONS + 1, 18)]
    assert found.answers == {}
    assert "answers" not in found.by_position
    told = round_values(replace(round_metrics(0), drift=found))
    assert told["drift/completions/kl_rev_rmse"] == found.completions["kl_rev"].rmse
    assert not [name for name in told if name.startswith("drift/answers")]


def test_what_was_not_measured_is_never_printed_as_a_number(tmp_path: Path):
    """A D of 0 is what earlier versions wrote for an arm without a barrier; a round of theirs has no drift."""
    folder = write_run(tmp_path / "run", rounds=1)
    before = RoundMetrics.load(folder.round(0))
    old = TrainingFigures(1.7, 1.6, 0.0, 0.0, 0.0, validation_ce=1.55, validation_D=0.0)
    rewrite(folder, METRICS, record_bytes(replace(before, training=old, drift=None)))
    results = read_results(folder)
    read = results.last.metrics.training
    assert (read.loss, read.validation_ce) == (1.7, 1.55)
    assert (read.D_mean, read.D_max, read.barrier_on, read.validation_D) == (None,) * 4
    assert not {"training/D_mean", "training/D_max", "training/barrier_on"} & round_values(results.last.metrics).keys()
    lines = {line.label: plain(line.cells[0]) for group in round_table(results) for line in group.lines}
    unmeasured = [name for name in lines if name in ("D, mean", "D, largest", "barrier on") or "completions" in name]
    assert len(unmeasured) == 5
    assert {lines[name] for name in unmeasured} == {"\N{EN DASH}"}
