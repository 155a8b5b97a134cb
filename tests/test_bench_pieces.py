"""The benchmark's pieces run on a tiny model and say what they promise to say."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import Gemma3TextConfig, Qwen3Config

from heal.models.language_model import LanguageModel
from heal.studies.bench import setting as settings
from heal.studies.bench import whole
from heal.studies.bench.run import PIECES, bench
from heal.studies.bench.timing import Row
from tests.cases import case
from tests.commanded import heal
from tests.tiny import CPU, HIDDEN

ROOT = Path(__file__).resolve().parent.parent

EXPECTED = {
    "heal": {"heal_step", "heal_memory"},
    "barrier": {"barrier_time", "barrier_memory"},
    "reference": {"reference_cached"},
    "generate": {"steered_generate", "batched_generate"},
    "extract": {"extract_stop"},
    "calibrate": {"calibration_cold", "calibration_warm"},
    "history": {"history_step_8", "history_step_16", "history_decode_8", "history_decode_16"},
    "round": {
        "round",
        *(f"round_{name}" for name in ("extract", "calibrate", "generate", "filter", "heal", "evaluate")),
    },
}


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path) -> Path:
    """A recipe on the tiny model with small sizes."""
    content = {
        "model": {"name": str(tiny_folder)},
        "heal": {"rank": 4, "alpha": 8},
        "calibration": {"tokens": 4, "candidates": 2, "max_passes": 2},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def run(recipe: Path, *names: str) -> list[Row]:
    return bench(names, str(recipe), "love", "cpu", 1, lambda line: None)


def test_a_stage_gives_its_rows(recipe: Path):
    for name in [name for name in PIECES if name not in ("round", "heal", "history")]:
        with case(name):
            rows = run(recipe, name)
            assert {row.name for row in rows} == EXPECTED[name]
            assert all(row.seconds > 0 for row in rows)
            for row in rows:
                if row.baseline_seconds is not None and "memory" not in row.name:
                    assert row.ratio == pytest.approx(row.seconds / row.baseline_seconds)


def test_a_healing_step_is_timed_against_trl(recipe: Path, capsys: pytest.CaptureFixture[str]):
    step, memory = run(recipe, "heal")
    assert (step.name, memory.name) == ("heal_step", "heal_memory")
    assert step.baseline_seconds is not None
    assert memory.peak_bytes
    assert capsys.readouterr().out == ""


def test_a_whole_round_is_the_sum_of_its_stages(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"PAIRS": 2, "COMPLETIONS": 4, "TOKENS": 6, "HEALED": 4, "EPOCHS": 1, "ANSWERED": 2}.items():
        monkeypatch.setattr(whole, name, value)
    monkeypatch.setattr(whole, "ANSWER_TOKENS", 4)
    monkeypatch.setattr(whole, "EVALUATIONS", 2)
    *parts, total = run(recipe, "round")
    assert {row.name for row in parts} | {total.name} == EXPECTED["round"]
    assert total.seconds == pytest.approx(sum(row.seconds for row in parts))
    assert total.ratio == pytest.approx(total.seconds / sum(row.baseline_seconds or 0.0 for row in parts))


def test_every_stage_is_covered_and_the_command_knows_them_all():
    assert EXPECTED.keys() == PIECES.keys()
    shown = heal("bench", "--help")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in PIECES)


def test_the_command_prints_json_and_nothing_else_on_its_output(recipe: Path):
    words = ["barrier", "--json", f"recipe={recipe}", "device=cpu", "threads=1"]
    done = heal("bench", *words)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {"name", "seconds", "baseline_seconds", "ratio", "limit_share"} <= rows[0].keys()
    assert [row["name"] for row in rows] == ["barrier_time", "barrier_memory"]


def test_a_word_that_is_no_stage_is_one_line_and_exit_2(recipe: Path):
    done = heal("bench", "heel")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "heel" in done.stderr


@pytest.mark.parametrize("kind", [Gemma3TextConfig, Qwen3Config])
def test_a_shape_becomes_a_bfloat16_model_with_random_weights(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch, kind: type
):
    small = {"vocab_size": 300, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setitem(settings.SHAPES, "small", lambda: kind(**small, **heads))
    made = settings.random_loader("small", tiny, CPU)()
    assert made.model.dtype == torch.bfloat16
    assert made.model.config.vocab_size == 300
    assert not any(weight.requires_grad for weight in made.model.parameters())


@pytest.mark.parametrize(("name", "billions"), [("gemma-3-4b", 3.9), ("qwen3-4b", 4.0)])
def test_the_shapes_are_of_the_size_that_their_names_say(name: str, billions: float):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings.SHAPES[name]())
    assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.15)
