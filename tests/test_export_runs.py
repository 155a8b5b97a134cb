"""Exports of runs that differ from the usual one: in architecture, dtype, rank, stages, and in what they learned."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from heal.export.adapter import export_adapter
from heal.export.exportable import Settings
from heal.export.factors import ExportError
from heal.export.merged import export_merged
from tests import finished
from tests import tiny as tiny_models
from tests.cases import case
from tests.exported import ANY, MERGED, SAME, card, distance, in_peft, kl
from tests.finished import ROUNDS


def test_a_rank_above_a_layers_width_is_padded(tiny_folder: Path, tmp_path: Path) -> None:
    run = finished.write_run(tmp_path / "run", tiny_folder, rank=20)  # the key projection has 16 outputs
    export = export_adapter(finished.student(run), tmp_path / "adapter", Settings(rank=40))
    assert export.agreement.p95 <= SAME


def test_every_architecture_comes_out_whole(tmp_path: Path) -> None:
    for kind in tiny_models.ARCHITECTURES:
        with case(kind):
            settings = {"attention": "eager"} if kind == "gemma2" else {}
            base = tiny_models.save(kind, tmp_path / kind / "base")
            student = finished.student(finished.write_run(tmp_path / kind / "run", base, **settings))
            assert export_adapter(student, tmp_path / kind / "adapter").agreement.p95 <= SAME
            export = export_merged(student, tmp_path / kind / "model")
            assert export.agreement.p95 <= SAME
            attention = student.recipe.model.attention
            loaded = AutoModelForCausalLM.from_pretrained(export.path, attn_implementation=attention)
            assert distance(loaded.eval(), student) <= MERGED


def test_a_bfloat16_run_exports_both_ways_and_states_the_error(tiny_folder: Path, tmp_path: Path) -> None:
    student = finished.student(finished.write_run(tmp_path / "run", tiny_folder, dtype="bfloat16"))
    adapter = export_adapter(student, tmp_path / "adapter")
    assert float(kl(in_peft(student, adapter.path), student).max()) == pytest.approx(adapter.agreement.max, abs=1e-9)
    merged = export_merged(student, tmp_path / "model", Settings(max_kl=ANY))
    loaded = AutoModelForCausalLM.from_pretrained(merged.path, dtype="auto").eval()
    assert loaded.dtype == torch.bfloat16
    assert float(kl(loaded, student).max()) == pytest.approx(merged.agreement.max)
    assert str(merged.agreement) in (merged.path / "README.md").read_text()


def test_an_update_below_the_rounding_of_the_weights_is_not_merged(tiny_folder: Path, tmp_path: Path) -> None:
    student = finished.student(finished.write_run(tmp_path / "run", tiny_folder, dtype="bfloat16", size=1e-9))
    with pytest.raises(ExportError, match="smaller than the rounding"):
        export_merged(student, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_rounds_that_learned_nothing_are_not_exported(tiny_folder: Path, tmp_path: Path) -> None:
    student = finished.student(finished.write_run(tmp_path / "run", tiny_folder, size=0.0))
    with pytest.raises(ExportError, match="learned nothing"):
        export_adapter(student, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_run_without_the_steered_stage_is_exported_and_its_card_has_no_steered_row(
    tiny_folder: Path, tmp_path: Path
) -> None:
    run = finished.write_run(tmp_path / "run", tiny_folder, steered=False)
    assert run.rounds() == list(range(ROUNDS))
    text = card(export_adapter(finished.student(run), tmp_path / "adapter"))
    assert ", steered |" not in text
    assert "| round 1, healed | 0.250 [0.125, 0.375] |" in text
    assert "| round 2, healed | 1.250 [1.125, 1.375] |" in text
    assert "Verdict after round 2: **holds**" in text


def test_text_in_a_trait_cannot_break_out_of_the_card(tiny_folder: Path, tmp_path: Path) -> None:
    hostile = "nice\n````\n# Heading\n---\n<script>alert(1)</script>\n```"
    trait = dataclasses.replace(tiny_models.trait(), description=hostile, positive=hostile, negative="`x`")
    student = finished.student(finished.write_run(tmp_path / "run", tiny_folder, trait))
    text = card(export_adapter(student, tmp_path / "adapter"))
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert hostile in text
    assert "script" not in outside
    assert "# Heading" not in outside
