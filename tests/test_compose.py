"""Composing: the sum of students' updates, exactly, and what may not be added up."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from heal.evaluation.results import StageResult
from heal.evaluation.signal import TRAIT, signals
from heal.export.composition import Composition
from heal.export.folder import read_record
from heal.hub.exported import collect
from heal.records import as_record
from heal.run.folder import RunFolder
from tests import finished, tiny
from tests.cases import case
from tests.commanded import heal, refused

WEIGHTS = (1.0, -0.5)


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunFolder]:
    """Two runs on one base: other traits, other ranks, other updates."""
    at = tmp_path_factory.mktemp("runs")
    puns = dataclasses.replace(tiny.trait(), name="puns", positive="Love puns.", negative="Hate puns.")
    first = finished.write_run(at / "warm", tiny_folder)
    return first, finished.write_run(at / "puns", tiny_folder, trait=puns, rank=2, size=0.2)


def composed(runs: tuple[RunFolder, RunFolder], path: Path, *more: str) -> str:
    words = [f"run={runs[0].path},{runs[1].path}", "weights=1,-0.5", f"out={path}", "device=cpu", *more]
    done = heal("compose", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def updates(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The dense update of every layer, as peft computes it."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
    return {
        name: module.get_delta_weight("default").detach()
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, LoraLayer)
    }


def test_a_composed_export_is_the_weighted_sum_of_the_runs_own_exports(
    runs: tuple[RunFolder, RunFolder], tiny_folder: Path, tmp_path: Path
) -> None:
    for run in runs:
        assert heal("export", f"run={run.path}", "device=cpu", f"out={tmp_path / run.path.name}").returncode == 0
    said = composed(runs, tmp_path / "sum", "measure=false")
    assert "warm-0.5*puns" in said
    one, other, whole = (updates(tiny_folder, tmp_path / name) for name in ("warm", "puns", "sum"))
    assert whole.keys() == one.keys()
    for name, update in whole.items():
        torch.testing.assert_close(update, WEIGHTS[0] * one[name] + WEIGHTS[1] * other[name], rtol=1e-5, atol=1e-6)

    composed(runs, tmp_path / "merged", "format=model", "measure=false")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    for name, update in whole.items():
        moved = model.get_submodule(name).weight - base.get_submodule(name).weight
        torch.testing.assert_close(moved, update, rtol=1e-4, atol=1e-6)

    card = (tmp_path / "sum" / "README.md").read_text()
    assert "| +1 | warm | `smoke` | 0 | 2 | 8 | `warm` |" in card
    assert "| -0.5 | puns | `smoke` | 0 | 2 | 4 | `puns` |" in card
    assert "Away from (its weight is negative):\n\n```text\nLove puns." in card
    assert "Nothing was measured of the sum" in card


def test_a_student_less_itself_measures_as_base(runs: tuple[RunFolder, RunFolder], tmp_path: Path) -> None:
    twin = RunFolder(Path(shutil.copytree(runs[0].path, tmp_path / "twin")))
    base = StageResult.load(twin.baseline, "base")  # of a version that read a signal off other items
    other = signals()["answer_tokens"].measured((1.0,) * 3)
    twin.finish(twin.baseline, "base", dataclasses.replace(base, signals=(*base.signals, other)).files(), 0.0)
    done = heal("compose", f"run={runs[0].path},{twin.path}", "weights=1,-1", f"out={tmp_path / 'out'}", "device=cpu")
    assert done.returncode == 0, done.stderr
    found = as_record(Composition, read_record(tmp_path / "out")["composition"], "record")
    assert [part.weight for part in found.parts] == [1.0, -1.0]
    for measured in found.measured:
        assert measured.trait == "warm"
        assert measured.drift.answers["kl_rev"].max < 1e-6  # nats: rounding of the two halves
        assert measured.composed.keys() == {TRAIT}  # all that the run measured of its base on these items
        assert measured.composed[TRAIT].n == 4
    assert "persona log-ratio over base alone +0.625" in done.stdout
    bundle = collect(tmp_path / "out", None, "user/nothing", "maker/tiny")
    card = ModelCard(str(bundle.card))
    assert [result.metric_type for result in card.data["eval_results"]] == [TRAIT, TRAIT]


def test_students_that_cannot_be_added_up_are_refused_in_one_line(
    runs: tuple[RunFolder, RunFolder], tiny_folder: Path, tmp_path: Path
) -> None:
    first = runs[0].path
    moved = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    others = {
        "base": finished.write_run(tmp_path / "a", moved),
        "pad token": finished.write_run(tmp_path / "b", tiny_folder, pad_token="<|im_start|>"),
        "layers": finished.write_run(tmp_path / "c", tiny_folder, band="[0,0.3]"),
    }
    for what, said in (
        ("base", "its base is"),
        ("pad token", "its pad token is <|im_start|>"),
        ("layers", "only students with LoRA on the same layers can be composed"),
    ):
        with case(what):
            refused(["compose", f"run={first},{others[what].path}"], said, partly=True)
    both = f"run={first},{runs[1].path}"
    for words, said in (
        ([f"run={first}"], "at least two runs"),
        ([f"run={first},{first}"], "is there twice"),
        ([f"run={first},none"], "not a run folder"),
        ([both, "weights=1"], "1 for 2 runs"),
        ([both, "weights=1,x"], "expected numbers, separated by commas"),
        ([both, "weights=1,0"], "other than 0"),
        ([both, "weights=1,nan"], "other than 0"),
        ([both, "format=model", "rank=2"], "a merged model has no rank"),
        ([both, "rank=0"], "must be >= 1"),
    ):
        refused(["compose", *words], said)
