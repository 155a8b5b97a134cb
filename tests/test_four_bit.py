"""A base in 4 bits through the whole path: load, gradients, a round, fold, continue, export both ways."""

from collections.abc import Callable
from pathlib import Path

import bitsandbytes.nn.modules
import pytest
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file
from torch import Tensor, nn

from heal.accumulator import Accumulator
from heal.errors import UserError
from heal.export.adapter import export_adapter
from heal.export.exportable import MAX_KL, Settings
from heal.export.factors import ExportError, history_factors
from heal.export.merged import export_merged
from heal.models.agreement import Agreement
from heal.models.four_bit import keep_one_form
from heal.models.language_model import LanguageModel
from tests import finished, tiny
from tests.cases import case
from tests.closeness import assert_near
from tests.students import ALPHA, LAYERS, RANK, logits, put
from tests.training import ONE_STEP, healed

pytestmark = pytest.mark.usefixtures("quick_collections")

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # which bitsandbytes would repack


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama with layers narrower than a block of scales, and a Qwen3 whose layers are whole numbers of blocks."""
    wide = tmp_path_factory.mktemp("wide")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**tiny.TEXT | WIDE))
    model.generation_config.eos_token_id = 2
    model.save_pretrained(wide)
    tiny.tokenizer().save_pretrained(wide)
    return {"llama": tiny_folder, "qwen3": wide}


@pytest.fixture(autouse=True)
def repacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes takes this processor for one that it repacks weights for."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)


def dequantised(folder: Path, quantised: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    """The model in floating point, with the values that the 4 bits stand for."""
    model = tiny.load(folder, dtype)
    for name, layer in quantised.model.named_modules():
        if isinstance(layer, Linear4bit):
            model.model.get_submodule(name).weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return model


def gradient(model: LanguageModel) -> Tensor:
    """Of a loss, in the inputs of the first block."""
    inputs_BTD = model.model.get_input_embeddings()(torch.arange(3, 19)[None]).detach().requires_grad_()
    model.model(inputs_embeds=inputs_BTD).logits.float().logsumexp(-1).mean().backward()
    assert inputs_BTD.grad is not None
    return inputs_BTD.grad


def test_every_dtype_computes_and_differentiates_as_the_dequantised_weights_do_after_any_pass(
    folders: dict[str, Path],
) -> None:
    for name, folder in folders.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            with case(name, dtype):
                model = tiny.load(folder, dtype, load_4bit=True)
                assert sum(isinstance(module, Linear4bit) for module in model.model.modules()) == 7 * tiny.BLOCKS
                plain = dequantised(folder, model, dtype)
                rounding = 64 * torch.finfo(dtype).eps
                assert_near(logits(model), logits(plain), rounding)
                assert_near(gradient(model), gradient(plain), rounding)
                assert torch.equal(logits(model), logits(model))


def test_a_round_on_4_bits_trains_as_on_the_dequantised_weights_and_leaves_the_base(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        with case(name):
            trained = []
            quantised = tiny.load(folder, load_4bit=True)
            for model in (quantised, dequantised(folder, quantised, torch.float32)):
                accumulator = Accumulator(model, RANK, ALPHA, LAYERS, merge=False)
                accumulator.start_round(0)
                before = logits(model)
                log = healed(model, accumulator, ONE_STEP)
                with accumulator.base():
                    assert torch.equal(logits(model), before)
                trained.append((log[0].values["loss"], accumulator.trainable()))
            (loss, ours), (expected, theirs) = trained
            assert loss == pytest.approx(expected, rel=1e-4)
            for key, weight in ours.items():
                assert weight.dtype == torch.float32
                assert_near(weight.data, theirs[key].data, 1e-2)  # AdamW: a sign where a gradient is tiny


def two_rounds(load: Callable[[], LanguageModel], folder: Path, stop: bool) -> tuple[dict[str, bytes], Tensor]:
    """The second round's adapter and the student's logits, either at once or loaded again after the first round."""
    model = load()
    accumulator = Accumulator(model, RANK, ALPHA, LAYERS)
    accumulator.start_round(0)
    healed(model, accumulator, ONE_STEP)
    files = accumulator.save_current()
    if stop:
        model = load()
        accumulator = Accumulator(model, RANK, ALPHA, LAYERS)
        accumulator.start_round(0)
        accumulator.load_current(put(folder, files))
    accumulator.fold()
    accumulator.start_round(1)
    healed(model, accumulator, ONE_STEP, round_index=1)
    files = accumulator.save_current()
    accumulator.fold()
    return files, logits(model)


def test_a_run_on_4_bits_that_is_continued_ends_in_the_same_bits(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, folder in folders.items():

        def load(folder: Path = folder) -> LanguageModel:
            return tiny.load(folder, load_4bit=True)

        with case(name):
            (once, whole), (again, continued) = (two_rounds(load, tmp_path / name, stop) for stop in (False, True))
            assert once == again
            assert torch.equal(whole, continued)


def test_an_adapter_is_exact_on_the_same_4_bits_and_a_merged_model_says_what_the_others_cost(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for name, folder in folders.items():
        with case(name):
            student = finished.student(finished.write_run(tmp_path / name, folder, load_4bit="true"))
            adapter = export_adapter(student, tmp_path / f"{name}-adapter")
            assert adapter.agreement == Agreement(0.0, 0.0, 0.0, 1.0)
            code = (adapter.path / "README.md").read_text()
            assert "BitsAndBytesConfig(load_in_4bit=True" in code
            with pytest.raises(ExportError, match="format=adapter is exact, on the base in 4 bits"):
                export_merged(student, tmp_path / f"{name}-model")
            merged = export_merged(student, tmp_path / f"{name}-model", Settings(max_kl=1e9))
            assert merged.agreement.p95 > MAX_KL
            weights = load_file(merged.path / "model.safetensors")
            base = load_file(folder / "model.safetensors")
            for key, (a_RI, b_OR) in history_factors(student.accumulator).layers.items():
                assert_near(weights[f"{key}.weight"], base[f"{key}.weight"] + b_OR @ a_RI)


def test_a_model_without_a_layer_to_quantise_is_refused() -> None:
    with pytest.raises(UserError, match=r"no layer of Embedding .* leave it out"):
        keep_one_form(nn.Embedding(2, 2))
