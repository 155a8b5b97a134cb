"""Loading: every architecture is read right, and what would go wrong silently is refused."""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import count, product
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from heal.config import ModelConfig
from heal.errors import UserError
from heal.models import architectures
from heal.models.language_model import LanguageModel, token_batches
from heal.models.load import load_language_model
from heal.models.precision import resolve_dtype
from tests import tiny as tiny_models
from tests.cases import case
from tests.closeness import assert_near
from tests.tiny import BLOCKS, CPU, HIDDEN, VOCABULARY, load, prompts


@pytest.fixture
def copies(tiny_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """As many copies of the tiny Llama's folder as are needed, to be broken."""
    return (Path(shutil.copytree(tiny_folder, tmp_path / f"model{number}")) for number in count())


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama's folder, to be broken."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def refusal(folder: Path, **settings) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def replace_model(folder: Path, model: transformers.PreTrainedModel) -> None:
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)


def bert() -> transformers.PreTrainedModel:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
    )
    return transformers.BertForMaskedLM(config)


def t5() -> transformers.PreTrainedModel:
    config = transformers.T5Config(vocab_size=VOCABULARY, d_model=HIDDEN, num_layers=1, num_heads=2, d_ff=32, d_kv=16)
    return transformers.T5ForConditionalGeneration(config)


def bart() -> transformers.PreTrainedModel:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = transformers.BartConfig(vocab_size=VOCABULARY, d_model=HIDDEN, encoder_layers=1, decoder_layers=1, **heads)
    return transformers.BartForConditionalGeneration(config)


def gpt2() -> transformers.PreTrainedModel:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=1, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def granite() -> transformers.PreTrainedModel:
    config = transformers.GraniteConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
        logits_scaling=8.0,
    )
    return transformers.GraniteForCausalLM(config)


def test_the_weights_are_those_of_the_checkpoint(tiny: LanguageModel, tiny_folder: Path):
    loaded = tiny.model.state_dict()
    for name, weight in load_file(tiny_folder / "model.safetensors").items():
        assert torch.equal(loaded[name], weight), name


def test_a_loaded_model_is_frozen_evaluates_and_has_the_blocks_of_the_language_model(
    architectures: dict[str, LanguageModel],
):
    for name, model in architectures.items():
        assert not model.model.training, name
        assert not any(weight.requires_grad for weight in model.model.parameters()), name

    for name, model in architectures.items():
        assert len(model.blocks) == BLOCKS, name
        assert model.model.config.get_text_config().hidden_size == HIDDEN, name


def test_logits_are_the_model_s_own_soft_capped_and_float32_whatever_the_weights_are(
    architectures: dict[str, LanguageModel], tmp_path: Path, tiny_folder: Path
):
    for name, model in architectures.items():
        for ids in prompts(model):
            with case(name, ids), torch.no_grad():
                h_BTD = model.decoder(input_ids=torch.tensor([ids])).last_hidden_state
                assert_near(model.logits(h_BTD), model.model(input_ids=torch.tensor([ids])).logits)

    gemma = tiny_models.load_architecture("gemma2", tmp_path)
    assert gemma.softcap == 5.0
    assert gemma.logits(1e3 * torch.ones(1, HIDDEN)).abs().max() <= 5.0

    half = load(tiny_folder, torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert half.logits(torch.ones(3, HIDDEN)).dtype == torch.float32


def test_the_end_of_turn_is_read_from_the_generation_config_and_the_tokenizer(folder: Path):
    edit_json(folder / "generation_config.json", eos_token_id=[7, 9])
    assert load(folder).end_ids == {7, 9, 2}


def test_a_band_holds_the_blocks_whose_outputs_lie_in_it_or_else_the_nearest(tiny: LanguageModel):
    for band in [(0.0, 0.0), (0.45, 0.55), (0.6, 0.6), (0.99, 1.0), (0.0, 1.0), (0.3, 0.3)]:
        with case(band):
            chosen = tiny.band(band)
            assert chosen
            assert chosen == sorted(set(chosen))
            assert set(chosen) <= set(range(BLOCKS))

    assert tiny.band((0.0, 1.0)) == [0, 1, 2, 3]
    assert tiny.band((0.5, 0.75)) == [1, 2]
    assert tiny.band((0.45, 0.55)) == [1]

    assert tiny.band((0.80, 0.82)) == [2]
    assert tiny.band((0.93, 0.94)) == [3]
    assert tiny.band((0.0, 0.0)) == [0]


def test_weights_that_do_not_match_the_architecture_are_refused_and_named(copies: Iterator[Path]):
    known, unknown = "model.layers.1.mlp.up_proj.weight", "model.layers.1.extra.weight"
    for what, name, edit in [
        ("missing", known, lambda weights: weights.pop(known)),
        ("unexpected", unknown, lambda weights: weights.update({unknown: torch.ones(2)})),
        ("mismatched", known, lambda weights: weights.update({known: torch.ones(2, 2)})),
    ]:
        with case(what):
            folder = next(copies)
            edit_weights(folder, edit)
            message = refusal(folder)
            assert what in message
            assert name in message


def test_a_gemma3_language_model_is_never_filled_with_random_weights(tmp_path: Path):
    nested = tiny_models.load_architecture("gemma3_nested", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    embedding = next(weight for name, weight in stored.items() if name.endswith("embed_tokens.weight"))
    assert torch.equal(nested.model.get_input_embeddings().weight, embedding)


def test_weights_that_are_truncated_or_in_pickle_form_are_refused(copies: Iterator[Path]):
    folder = next(copies)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "damaged weights file" in refusal(folder)

    folder = next(copies)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "pickle" in message
    assert "pytorch_model.bin" in message
    assert "safetensors" in message


def test_a_tokenizer_without_chat_template_is_refused_and_one_can_be_given(copies: Iterator[Path], tmp_path: Path):
    folder = next(copies)
    (folder / "chat_template.jinja").unlink()
    assert "model.chat_template=" in refusal(folder)

    folder = next(copies)
    (folder / "chat_template.jinja").unlink()
    template = tmp_path / "mine.jinja"
    template.write_text("{% for message in messages %}[{{ message['content'] }}]{% endfor %}")
    assert load(folder, chat_template=str(template)).chat.text("", "hi") == "[hi]["

    folder = next(copies)
    assert "model.chat_template=no.jinja: no such file" in refusal(folder, chat_template="no.jinja")


def test_a_tokenizer_without_pad_token_is_refused_and_one_with_an_embedding_can_be_given(copies: Iterator[Path]):
    folder = next(copies)
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    assert "model.pad_token='<|pad|>'" in refusal(folder)

    folder = next(copies)
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    assert load(folder, pad_token="<|pad|>").pad_id == 0

    folder = next(copies)
    assert "model.pad_token=<|pod|>: not in the vocabulary" in refusal(folder, pad_token="<|pod|>")

    folder = next(copies)
    tokenizer = tiny_models.tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<|extra {number}|>" for number in range(40)]})
    tokenizer.save_pretrained(folder)
    assert "no embedding" in refusal(folder, pad_token="<|extra 39|>")


def test_an_architecture_that_heal_cannot_run_is_refused_and_says_why(
    copies: Iterator[Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(architectures, "ARCHITECTURES", {})  # a scale that heal does not know
    for build, why in [
        (bert, "not causal"),
        (t5, "decoder-only"),
        (bart, "decoder-only"),
        (gpt2, "architecture 'gpt2' is not supported (its layers are Conv1D"),
        (granite, "its logits are not its head applied to its final hidden states"),
    ]:
        with case(build.__name__):
            folder = next(copies)
            replace_model(folder, build())
            assert why in refusal(folder)


def test_an_attention_kernel_that_the_model_does_not_have_says_what_to_set(tmp_path: Path):
    assert "model.attention=eager" in refusal(tiny_models.save("gemma2", tmp_path), attention="sdpa")


def test_a_folder_may_be_given_from_the_home_folder_on_and_a_hub_id_is_none(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    name = f"~/{tiny_folder.name}"
    assert ModelConfig(name=name).folder == tiny_folder
    assert load(Path(name)).name == name

    (tmp_path / "embedded").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [ModelConfig(name=name).folder for name in ("embedded", "Qwen/Qwen3-0.6B")] == [None, None]


def test_a_model_that_is_not_there_or_of_an_unknown_kind_is_refused(tmp_path: Path, copies: Iterator[Path]):
    assert f"model.name={tmp_path}" in refusal(tmp_path)

    for name in (tmp_path / "nowhere", Path("no-such-owner/no-such-model")):
        with case(name):
            assert "found neither as a folder nor on the hub" in refusal(name)

    folder = next(copies)
    edit_json(folder / "config.json", model_type="perceptron_1958", architectures=None)
    assert "perceptron_1958" in refusal(folder)


def test_a_missing_or_broken_file_is_an_error_about_the_model(copies: Iterator[Path]):
    for name, content in product(("config.json", "tokenizer.json"), (None, "{")):
        with case(name, content):
            folder = next(copies)
            (folder / name).unlink()
            if content is not None:
                (folder / name).write_text(content)
            assert f"model.name={folder}" in refusal(folder)


def test_another_source_is_read_under_the_same_name(folder: Path, tiny: LanguageModel):
    edit_weights(folder, lambda weights: weights["lm_head.weight"].zero_())
    other = load_language_model(ModelConfig(name=tiny.name), torch.float32, CPU, source=str(folder))
    assert other.name == tiny.name
    assert not other.model.get_output_embeddings().weight.any()


def test_token_batches_hold_every_row_once_and_keep_to_the_budget():
    lengths = [3, 9, 1, 9, 4, 20, 2, 7]
    for budget in (1, 7, 20, 1000):
        with case(budget):
            batches = token_batches(lengths, budget)
            assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
            for batch in batches:
                assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


def test_a_dtype_that_is_asked_for_is_taken_and_auto_measures_and_leaves_emulation_out(monkeypatch: pytest.MonkeyPatch):
    assert resolve_dtype("bfloat16", CPU)[0] == torch.bfloat16
    assert resolve_dtype("float32", CPU)[0] == torch.float32

    chosen, why = resolve_dtype("auto", CPU)
    ratio = float(why.partition("at ")[2].split()[0])
    assert why.startswith("measured")
    assert chosen == (torch.bfloat16 if ratio >= 1.5 else torch.float32) or abs(ratio - 1.5) < 0.01

    for emulated, dtype in ((True, torch.float32), (False, torch.bfloat16)):

        def supported(including_emulation: bool = True, emulated: bool = emulated) -> bool:
            return including_emulation or not emulated

        with case(emulated):
            monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
            assert resolve_dtype("auto", torch.device("cuda"))[0] == dtype
