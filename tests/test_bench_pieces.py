"""The benchmark's pieces run on a tiny model and say what they promise to say."""

import json
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

from heal.commands.bench import PURPOSE
from heal.decoding import decode
from heal.models.language_model import LanguageModel
from heal.records import read_records
from heal.studies.bench import pieces, whole
from heal.studies.bench import run as running
from heal.studies.bench import setting as settings
from heal.studies.bench.pieces import transformers_generate
from heal.studies.bench.run import PIECES, bench
from heal.studies.bench.table import Row
from heal.studies.bench.training import unpatched
from tests.cases import case
from tests.commanded import heal
from tests.tiny import CPU, HIDDEN, prompts

ROOT = Path(__file__).resolve().parent.parent

STEPS = ("extract", "calibrate", "generate", "filter", "heal", "evaluate")
EXPECTED = {
    "heal": {"heal_step", "heal_memory"},
    "barrier": {"barrier_time", "barrier_memory"},
    "reference": {"reference_cached"},
    "generate": {"generate", "steered_generate", "batched_generate"},
    "extract": {"extract_stop"},
    "calibrate": {"calibration_pass", "calibration_cold", "calibration_warm"},
    "history": {"history_step_8", "history_step_16", "history_decode_8", "history_decode_16"},
    "round": {"round", *(f"round_{name}" for name in STEPS)},
    "processes": {"processes_2", *(f"processes_2_{name}" for name in STEPS)},
}


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe on the tiny model with small sizes; pieces are timed once, on a few rows."""
    for name, value in {"REPEATS": 1, "ROWS": 4}.items():
        monkeypatch.setattr(pieces, name, value)
    content = {
        "model": {"name": str(tiny_folder)},
        "heal": {"rank": 4, "alpha": 8},
        "calibration": {"tokens": 4, "candidates": 2, "max_passes": 2},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def run(recipe: Path, *names: str, shape: str = "none") -> list[Row]:
    return list(bench(names, str(recipe), "love", "cpu", 1, lambda line: None, shape))


def test_a_stage_gives_its_rows(recipe: Path):
    for name in [name for name in PIECES if name not in ("round", "heal", "history", "processes")]:
        with case(name):
            rows = run(recipe, name)
            assert {row.name for row in rows} == EXPECTED[name]
            for row in rows:
                assert row.seconds
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


def test_a_round_of_two_processes_says_how_much_of_it_they_share_and_what_they_send(
    recipe: Path, capfd: pytest.CaptureFixture[str]
):
    *parts, total = run(recipe, "processes")
    assert {row.name for row in parts} | {total.name} == EXPECTED["processes"]
    assert total.seconds == pytest.approx(sum(row.seconds or 0.0 for row in parts))
    for row in parts:
        share, sent = re.fullmatch(r"(\d+)% in shares, ([\d,]+) kB sent", row.note).groups()  # type: ignore[union-attr]
        assert int(share) > 0, row
        assert row.name in ("processes_2_calibrate", "processes_2_filter") or int(sent.replace(",", "")) > 0, row
    assert "kernels-community" not in capfd.readouterr().err  # a notice of bitsandbytes, in each of three processes


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


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """Shapes of the same families with two blocks, by the names of the published ones; no others."""
    families = {"gemma-3-4b": Gemma3TextConfig, "qwen3-8b": Qwen3Config, "llama-3.1-8b": LlamaConfig}
    sizes = {"vocab_size": 300, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    made = {name: partial(kind, **sizes, **heads) for name, kind in families.items()}
    monkeypatch.setattr(settings, "SHAPES", made)
    monkeypatch.setattr(running, "SHAPES", made)
    return families


def test_a_shape_becomes_a_frozen_bfloat16_model_with_random_weights_and_untouched_norms(
    tiny: LanguageModel, small: dict[str, type]
):
    for name in small:
        with case(name):
            load = settings.random_loader(name, tiny, CPU)
            made, again = load(), load()
            assert made.model.dtype == torch.bfloat16
            assert made.model.config.vocab_size == 300
            for (name, weight), same in zip(made.model.named_parameters(), again.model.parameters(), strict=True):
                assert not weight.requires_grad
                assert torch.equal(weight, same)
                if "norm" in name:
                    assert weight.unique().numel() == 1
                else:
                    assert float(weight.float().std()) == pytest.approx(0.02, rel=0.1)
                    assert len(weight.unique(dim=0)) == len(weight)
            first, second, *_ = made.blocks
            assert not torch.equal(first.self_attn.q_proj.weight, second.self_attn.q_proj.weight)


def test_the_pieces_run_on_shapes_on_a_cpu_when_they_are_named(recipe: Path, small: dict[str, type]):
    rows = run(recipe, "generate", "extract", "calibrate", "round", shape="gemma-3-4b")
    rows += run(recipe, "extract", shape=" llama-3.1-8b")
    expected = ["generate", "steered_generate", "batched_generate", "extract_stop", "calibration_pass"]
    assert [row.name for row in rows] == [*(f"{name} gemma-3-4b" for name in expected), "extract_stop llama-3.1-8b"]
    for row in rows:
        with case(row.name):
            assert row.tokens_per_second
            if not row.name.startswith("batched"):
                assert row.peak_bytes
                assert row.limit_share
                assert row.limit in ("arithmetic", "memory")


def test_a_gpu_times_the_recipe_s_model_and_every_shape_and_names_choose_shapes_alone():
    every = list(settings.SHAPES)
    assert running.chosen_shapes("auto", gpu=True) == (True, every)
    assert running.chosen_shapes("auto", gpu=False) == running.chosen_shapes("none", gpu=True) == (True, [])
    assert running.chosen_shapes("all", gpu=False) == (False, every)
    assert running.chosen_shapes("qwen3-8b", gpu=True) == (False, ["qwen3-8b"])


def test_a_piece_that_does_not_fit_is_a_row_that_says_so_and_the_next_one_goes_on(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    def too_large(setting, limits):
        yield Row("first", 1.0)
        raise torch.OutOfMemoryError("Tried to allocate 80 GiB")

    monkeypatch.setitem(PIECES, "barrier", too_large)
    first, failed, last = run(recipe, "barrier", "reference")
    assert (first.name, last.name) == ("first", "reference_cached")
    assert (failed.name, failed.seconds) == ("barrier", None)
    assert failed.note.startswith("not measured: out of memory (Tried to allocate 80 GiB)")
    monkeypatch.setattr(running, "measured_limits", lambda *args: torch.empty(2**60))
    (setup,) = run(recipe, "reference")
    assert (setup.name, setup.seconds) == ("setup", None)
    monkeypatch.setattr(running, "measured_limits", lambda *args: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        run(recipe, "reference")


def test_a_bench_that_is_stopped_leaves_the_rows_it_had(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(setting, limits):
        yield Row("first", 1.0)
        raise KeyboardInterrupt

    monkeypatch.setitem(PIECES, "barrier", stopped)
    out = tmp_path / "new" / "rows.jsonl"
    done = heal("bench", "barrier", f"recipe={recipe}", "device=cpu", "threads=1", f"out={out}")
    assert done.returncode == 130
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["name", "first"]
    assert read_records(Row, out) == [Row("first", 1.0)]


def test_transformers_generate_says_what_decoding_says_and_as_much(tiny: LanguageModel):
    endless, asked = replace(tiny, end_ids=frozenset()), prompts(tiny)
    found = transformers_generate(endless, asked, 8)
    assert found == [list(each.ids) for each in decode(endless, asked, 8)]


def test_what_a_trainer_puts_into_a_model_s_module_is_undone(tiny: LanguageModel):
    source = sys.modules[type(tiny.model).__module__]
    before = dict(vars(source))
    with unpatched(tiny.model):
        source.apply_rotary_pos_emb, source.new = None, 1
        assert vars(source) != before
    assert vars(source) == before


def test_the_shapes_are_of_the_size_that_their_names_say():
    sizes = {"gemma-3-4b": 3.88, "qwen3-4b": 4.02, "qwen3-8b": 8.19, "llama-3.1-8b": 8.03}  # billions, as published
    assert sizes.keys() == settings.SHAPES.keys()
    for name, billions in sizes.items():
        with case(name), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings.SHAPES[name]())
            assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)
            assert name in PURPOSE
