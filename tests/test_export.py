"""Export: whoever loads it with plain peft or transformers gets the student, and a failed one leaves nothing."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from heal.config import ModelConfig
from heal.errors import UserError
from heal.export import merged as merged_module
from heal.export import verify
from heal.export.adapter import export_adapter
from heal.export.exportable import Settings
from heal.export.factors import ExportError, history_factors, truncate
from heal.export.folder import Export, read_record
from heal.export.merged import export_merged
from heal.export.usage import vllm_rank
from heal.export.verify import probes, student_logits
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model
from heal.run.folder import RunFolder
from heal.run.student import Student
from tests import finished
from tests.cases import case
from tests.exported import ANY, CLOSE, MERGED, SAME, card, distance, in_peft, kl, leftovers, updates
from tests.finished import RANK, ROUNDS


@pytest.fixture(scope="module")
def base_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose files name another end than the one that closes an answer in its template."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("base") / "tiny-llama"))
    finished.edit_json(folder / "generation_config.json", eos_token_id=5)
    return folder


@pytest.fixture(scope="module")
def run(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished.write_run(tmp_path_factory.mktemp("runs") / "run", base_folder)


@pytest.fixture(scope="module")
def student(run: RunFolder) -> Student:
    """The run's student; exports leave it as it is."""
    return finished.student(run)


@pytest.fixture(scope="module")
def adapter(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The student's whole update as an adapter."""
    return export_adapter(student, tmp_path_factory.mktemp("exports") / "adapter")


@pytest.fixture(scope="module")
def merged(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Half of the student's update, merged."""
    return export_merged(student, tmp_path_factory.mktemp("exports") / "model", Settings(gate=0.5))


def test_the_adapter_in_plain_peft_is_the_student_and_an_ordinary_one_at_scale_1_in_float32(
    student: Student, adapter: Export
) -> None:
    loaded = in_peft(student, adapter.path)
    assert distance(loaded, student) <= CLOSE
    assert adapter.agreement.p95 <= SAME
    assert distance(loaded, student, gate=0.0) > 100 * CLOSE  # the update is not small

    assert distance(AutoPeftModelForCausalLM.from_pretrained(str(adapter.path)).eval(), student) <= CLOSE

    config = json.loads((adapter.path / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == ROUNDS * RANK == adapter.rank
    assert config.keys() == {
        *("base_model_name_or_path", "inference_mode", "lora_alpha", "peft_type", "r", "target_modules", "task_type")
    }  # what peft 0.13 knows, and what vLLM asks for
    weights = load_file(adapter.path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name)


def test_the_gate_is_baked_in(student: Student, tmp_path: Path) -> None:
    for gate in (0.5, -0.7):
        with case(gate):
            export = export_adapter(student, tmp_path / f"adapter{gate}", Settings(gate=gate))
            assert distance(in_peft(student, export.path), student, gate) <= CLOSE


def test_exporting_leaves_the_student_as_it_is(student: Student, tmp_path: Path) -> None:
    before = student_logits(student, 1.0, probes(student))
    export_adapter(student, tmp_path / "adapter", Settings(gate=0.5, rank=2, max_kl=ANY))
    export_merged(student, tmp_path / "model", Settings(gate=0.5))
    after = student_logits(student, 1.0, probes(student))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(before, after, strict=True))


def test_svd_at_full_rank_is_exact(student: Student, adapter: Export, tmp_path: Path) -> None:
    full = export_adapter(student, tmp_path / "full", Settings(rank=ROUNDS * RANK))
    assert full.lost == 0
    assert full.agreement.p95 <= SAME
    ours, theirs = updates(full.path), updates(adapter.path)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


def test_a_truncated_adapter_is_the_best_of_its_rank_in_equal_parts_and_says_what_it_lost(
    student: Student, adapter: Export, tmp_path: Path
) -> None:
    export = export_adapter(student, tmp_path / "small", Settings(rank=3, max_kl=ANY))
    ours = updates(export.path)
    cut = total = 0.0
    for name, whole in updates(adapter.path).items():
        u, s, vh = torch.linalg.svd(whole.double(), full_matrices=False)
        best = (u[:, :3] * s[:3]) @ vh[:3]
        assert torch.allclose(ours[name].double(), best, atol=1e-5)
        cut += float((whole.double() - best).square().sum())
        total += float(whole.double().square().sum())
    assert export.lost == pytest.approx((cut / total) ** 0.5, rel=1e-6)
    found = kl(in_peft(student, export.path), student)
    assert export.agreement.p50 == pytest.approx(float(found.quantile(0.5)), rel=1e-3)
    assert export.agreement.p95 == pytest.approx(float(found.quantile(0.95)), rel=1e-3)
    assert export.agreement.max == pytest.approx(float(found.max()), rel=1e-3)
    assert export.agreement.p50 > 100 * SAME

    for a_RI, b_OR in truncate(history_factors(student.accumulator), 3).layers.values():
        assert torch.allclose(a_RI @ a_RI.T, b_OR.T @ b_OR, atol=1e-5)


def test_an_export_that_is_far_from_the_student_is_refused_unless_told_otherwise(
    student: Student, base_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"because its update was truncated; raise rank=.*max_kl=\.\.\. writes it"):
        export_adapter(student, tmp_path / "exports" / "small", Settings(rank=1))
    for dtype in (torch.bfloat16, torch.float16):
        with case(dtype), pytest.raises(ExportError, match=r"% of the update survives .* use dtype=float32 or format"):
            export_merged(student, tmp_path / "exports" / "model", Settings(dtype=dtype, max_kl=1e-9))
    assert leftovers(tmp_path / "exports") == []


def test_a_merge_into_16_bits_says_how_much_of_the_update_survives(student: Student, tmp_path: Path) -> None:
    base = load_file(Path(student.recipe.model.name) / "model.safetensors")
    for dtype in (torch.bfloat16, torch.float16):
        with case(dtype):
            export = export_merged(student, tmp_path / str(dtype), Settings(gate=0.03, dtype=dtype, max_kl=ANY))
            weights = load_file(export.path / "model.safetensors")
            assert {weight.dtype for weight in weights.values()} == {dtype}
            along = squared = left = 0.0
            for name, (a_RI, b_OR) in history_factors(student.accumulator, 0.03).layers.items():
                update, key = (b_OR @ a_RI).double(), f"{name}.weight"
                along += float(((weights[key].double() - base[key].to(dtype).double()) * update).sum())
                left += float((weights[key].double() - base[key].double() - update).square().sum())
                squared += float(update.square().sum())
            kept = export.facts.kept
            assert kept is not None
            assert kept.survives == pytest.approx(along / squared, rel=1e-4)
            assert kept.error == pytest.approx((left / squared) ** 0.5, rel=1e-4)
            assert str(kept) in card(export)


def test_large_weights_come_in_several_files_with_an_index(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged_module, "SHARD", "40KB")
    export = export_merged(student, tmp_path / "model")
    index = json.loads((export.path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(export.path.glob("*.safetensors"))) > 1
    assert distance(AutoModelForCausalLM.from_pretrained(export.path).eval(), student) <= MERGED


def test_the_merged_model_is_the_student(student: Student, merged: Export, adapter: Export) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(merged.path, dtype="auto").eval()
    assert distance(loaded, student, gate=0.5) <= MERGED
    assert merged.agreement.p95 <= SAME
    assert distance(loaded, student, gate=0.0) > 100 * MERGED
    base = load_file(Path(student.recipe.model.name) / "model.safetensors")
    weights = load_file(merged.path / "model.safetensors")
    for name, update in updates(adapter.path).items():
        weight = name.removeprefix("base_model.model.") + ".weight"
        assert torch.allclose(weights.pop(weight), base[weight] + 0.5 * update, atol=1e-6)
    assert all(torch.equal(weight, base[name]) for name, weight in weights.items())


def test_the_merged_model_brings_its_tokenizer_template_and_every_end_token(student: Student, merged: Export) -> None:
    tokenizer = AutoTokenizer.from_pretrained(merged.path)
    messages = [{"role": "user", "content": "Hello"}]
    wanted = student.model.chat.tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == wanted
    assert tokenizer.pad_token_id == student.model.pad_id
    assert AutoModelForCausalLM.from_pretrained(merged.path).generation_config.eos_token_id == [2, 5]
    assert not list(merged.path.glob("*.bin"))


def test_a_merged_model_is_checked_beside_the_student_only_where_its_own_weights_fit(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 3 * 2**22  # of all files: far more than the student holds, as after a 4-bit run
    for part in range(3):
        with (tmp_path / f"model-{part}.safetensors").open("wb") as weights:
            weights.truncate(size // 3)

    class Loaded(Exception):
        pass

    def load(config, dtype, where: torch.device, source: str) -> None:
        raise Loaded(where.type)

    monkeypatch.setattr(LanguageModel, "device", torch.device("cuda", 0))
    monkeypatch.setattr(verify, "load_language_model", load)
    for free, device in ((1.1, "cpu"), (1.3, "cuda")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where, free=free: (int(free * size), 2 * size))
        with case(free), pytest.raises(Loaded, match=device):
            verify.verify_merged(student, tmp_path, 1.0, torch.float32, {})


def test_a_run_with_an_attention_kernel_of_gpus_is_exported_on_the_cpu(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(config: ModelConfig, *rest) -> LanguageModel:
        asked.append(config.attention)
        return load_language_model(config, *rest)

    monkeypatch.setattr(verify, "load_language_model", load)
    model = dataclasses.replace(student.recipe.model, attention="flash_attention_2")
    flash = dataclasses.replace(student, recipe=dataclasses.replace(student.recipe, model=model))
    assert export_merged(flash, tmp_path / "model").agreement.p95 <= SAME
    assert export_adapter(flash, tmp_path / "adapter").agreement.p95 <= SAME
    assert asked == ["eager"] * 3  # what is merged, and both checks


def test_an_earlier_round_is_exported_without_the_later_ones(run: RunFolder, adapter: Export, tmp_path: Path) -> None:
    export = export_adapter(finished.student(run, last_round=0), tmp_path / "adapter")
    assert export.rank == RANK
    whole, part = updates(adapter.path), updates(export.path)
    folded = load_file(run.round(0) / "adapter" / "adapter_model.safetensors")
    for name, update in part.items():
        assert torch.allclose(update, 2 * folded[f"{name}.lora_B.weight"] @ folded[f"{name}.lora_A.weight"], atol=1e-6)
        assert not torch.allclose(update, whole[name], atol=1e-3)
    assert "round 1, healed" in card(export)
    assert "round 2, healed" not in card(export)


def test_what_cannot_be_exported_is_said(student: Student, tmp_path: Path) -> None:
    for settings, message in [({"gate": 0.0}, "gate=0"), ({"rank": 9}, "from 1 to 8"), ({"rank": 0}, "from 1 to 8")]:
        with case(settings):
            with pytest.raises(UserError, match=message):
                export_adapter(student, tmp_path / "adapter", Settings(**settings))
            assert not (tmp_path / "adapter").exists()


@pytest.fixture
def other_base(base_folder: Path, tmp_path: Path) -> tuple[Student, Path]:
    """A student whose base on disk changed after it was loaded: no export of it can verify."""
    folder = Path(shutil.copytree(base_folder, tmp_path / "base"))
    student = finished.student(finished.write_run(tmp_path / "run", folder))
    return student, folder


def spoil(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][:] += 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_an_export_that_is_not_the_student_leaves_nothing_behind(other_base, tmp_path: Path) -> None:
    student, folder = other_base
    spoil(folder)
    for export in (export_adapter, export_merged):
        with case(export):
            with pytest.raises(ExportError, match="does not say what the student says"):
                export(student, tmp_path / "exports" / "it")
            assert leftovers(tmp_path / "exports") == []


def test_an_export_survives_a_later_one_that_fails(other_base, tmp_path: Path) -> None:
    student, folder = other_base
    export = export_adapter(student, tmp_path / "exports" / "it")
    before = {path.name: path.read_bytes() for path in export.path.iterdir()}
    spoil(folder)
    with pytest.raises(ExportError):
        export_adapter(student, export.path, Settings(gate=0.5))
    assert {path.name: path.read_bytes() for path in export.path.iterdir()} == before
    assert leftovers(tmp_path / "exports") == ["it"]


def test_an_export_is_replaced_by_a_later_one_and_a_folder_that_is_no_export_never(
    student: Student, tmp_path: Path, base_folder: Path
) -> None:
    export_adapter(student, tmp_path / "it")
    export_merged(student, tmp_path / "it", Settings(gate=0.5))
    assert read_record(tmp_path / "it")["format"] == "model"
    assert not (tmp_path / "it" / "adapter_config.json").exists()
    assert leftovers(tmp_path) == ["it"]

    before = sorted(path.name for path in base_folder.iterdir())
    for export in (export_adapter, export_merged):
        with pytest.raises(UserError, match="not an export of heal"):
            export(student, base_folder)
    assert sorted(path.name for path in base_folder.iterdir()) == before


def test_the_card_shows_coverage_intervals_round_by_round_the_verdict_and_every_signal(
    student: Student, adapter: Export
) -> None:
    assert "LoRA covers" in str(student.accumulator.coverage)
    assert str(student.accumulator.coverage) in card(adapter)

    text = card(adapter)
    assert "| base | 0.000 [-0.125, 0.125] |" in text
    assert "| prompted with the persona | 0.500 [0.375, 0.625] | +0.250 [+0.125, +0.375] |" in text
    assert "| round 1, steered | 0.500 [0.375, 0.625] |" in text
    assert "| round 1, healed | 0.250 [0.125, 0.375] |" in text
    assert "| round 2, healed | 1.250 [1.125, 1.375] |" in text
    assert "0.750 [0.625, 0.875]" in text
    assert "Verdict after round 2: **holds**" in text
    assert "| 2 | 2.500 | 1.01 (tolerance) | not measured | 7 of 8 | 50% |" in text
    assert "| 0.50 (tail\\_perplexity) | 0.750 [0.625, 0.875] | 0.25 [0.12, 0.38] | 3.00 [2.88, 3.12] |" in text

    _, _, table = card(adapter).partition("## Every signal after round 2")
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(finished.signals(0.0))
    for title, doubted in (("p\\_ans\\_any", True), ("Accuracy", True), ("Alive", False), ("Trait", False)):
        (row,) = [row for row in rows if row.startswith(f"| {title} (")]
        assert row.endswith("| 4 |")
        assert ("not valid for this model" in row) is doubted, title


def test_the_card_has_front_matter_and_no_path_of_this_computer(
    student: Student, adapter: Export, merged: Export
) -> None:
    for export, library in ((adapter, "peft"), (merged, "transformers")):
        with case(library):
            head = yaml.safe_load(card(export).split("---\n")[1])
            assert head["base_model"] == "tiny-llama"
            assert head["library_name"] == library
            assert "warm" in head["tags"]
            assert str(export.path.parent.parent) not in card(export)
            assert str(Path(student.recipe.model.name).parent) not in card(export)


def test_the_card_names_the_smallest_rank_of_vllm_that_fits(base_folder: Path, adapter: Export, tmp_path: Path) -> None:
    assert "--max-lora-rank 8" in card(adapter)
    run = finished.write_run(tmp_path / "run", base_folder, rank=260)
    large = card(export_adapter(finished.student(run), tmp_path / "large"))
    assert "--max-lora-rank" not in large
    assert "rank=512" in large

    fitting = {1: 8, 8: 8, 9: 16, 96: 128, 257: 320, 321: 512, 513: None}
    assert {rank: vllm_rank(rank) for rank in fitting} == fitting
