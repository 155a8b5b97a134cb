"""Loading by what the files say: multimodal models, quantised weights, and the refusals before any weight is read."""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from heal.accumulator import Accumulator
from heal.errors import UserError
from heal.models import load as loading
from tests import tiny as tiny_models
from tests.cases import case
from tests.families import FAMILIES, WRAPPERS
from tests.tiny import BLOCKS, VOCABULARY, load, prompts

LFS = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24\n"
)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def copies(tiny_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """As many copies of the tiny Llama's folder as are needed, to be broken."""
    return (Path(shutil.copytree(tiny_folder, tmp_path / f"model{number}")) for number in count())


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(folder: Path, **settings) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The refusal of a folder, which must come before its weights are read."""

    def read(*_):
        raise AssertionError("the weights are read")

    def refused(folder: Path, **settings) -> str:
        with monkeypatch.context() as patched:
            patched.setattr(loading, "_load_weights", read)
            return refusal(folder, **settings)

    return refused


def sharded(folder: Path) -> list[str]:
    """Splits the weights of a folder into shards; their names."""
    weights = sorted(load_file(folder / SINGLE).items())
    (folder / SINGLE).unlink()
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        save_file(dict(weights[number::3]), folder / name, metadata={"format": "pt"})
    weight_map = {key: names[place % 3] for place, (key, _) in enumerate(weights)}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return names


def adapter(folder: Path, base: str) -> None:
    """Saves a LoRA with random weights in `folder`, as an adapter of `base`."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_models.ARCHITECTURES["llama"](), LoraConfig(r=2, target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)


def test_a_multimodal_model_loads_as_the_class_that_its_config_names(tmp_path: Path):
    for name in WRAPPERS:
        with case(name), torch.no_grad():
            saved = FAMILIES[name].build().eval()
            model = load(FAMILIES[name].save(tmp_path / name.replace("/", "-")))
            assert type(model.model) is type(saved)
            assert model.model.config.architectures == [type(saved).__name__]
            stored, loaded = saved.state_dict(), model.model.state_dict()
            assert stored.keys() == loaded.keys()
            assert all(torch.equal(loaded[key], weight) for key, weight in stored.items())
            assert len(model.blocks) == BLOCKS
            for ids in prompts(model):
                ids_1T = torch.tensor([ids])
                h_1TD = model.decoder(input_ids=ids_1T).last_hidden_state
                torch.testing.assert_close(model.logits(h_1TD), saved(input_ids=ids_1T).logits)


def test_an_adapter_in_place_of_a_model_or_beside_its_weights_is_refused(early, copies: Iterator[Path]):
    beside, alone = next(copies), next(copies).with_name("alone")
    adapter(alone, "owner/base")
    adapter(beside, "owner/base")
    assert "is an adapter of owner/base; give the base, or merge it first" in early(alone)
    assert "adapter (adapter_config.json) lies beside the weights" in early(beside)


def test_weights_that_are_not_all_there_are_refused_before_any_is_read(early, copies: Iterator[Path]):
    whole = next(copies)
    sharded(whole)
    assert load(whole).blocks
    for what, damage, words in [
        ("a shard is missing", lambda f, s: (f / s[1]).unlink(), ("1 of the 3 files", INDEX, "-00002-of-00003")),
        ("all are missing", lambda f, s: [(f / n).unlink() for n in s], ("3 of the 3 files", INDEX, "-00001-of-00003")),
        ("no index", lambda f, s: (f / INDEX).unlink(), (f"without {INDEX}", "-00001-of-00003")),
        ("no map", lambda f, s: (f / INDEX).write_text("{}"), (INDEX, "no weight_map")),
        ("no JSON", lambda f, s: (f / INDEX).write_text('{"weight_map": {'), (INDEX, "not JSON")),
        ("empty", lambda f, s: (f / s[2]).write_bytes(b""), ("damaged weights file", "-00003-of-00003")),
        ("cut", lambda f, s: (f / s[0]).write_bytes((f / s[0]).read_bytes()[:-1]), ("damaged", "-00001-of-00003")),
        ("LFS", lambda f, s: (f / s[0]).write_text(LFS), ("Git LFS pointer", "-00001-of-00003", "git lfs pull")),
        ("LFS", lambda f, s: (f / "tokenizer.json").write_text(LFS), ("Git LFS pointer", "tokenizer.json")),
    ]:
        with case(what):
            folder = next(copies)
            damage(folder, sharded(folder))
            message = early(folder)
            assert all(word in message for word in (f"model.name={folder}", *words)), message


def test_a_config_that_says_too_little_is_refused(early, copies: Iterator[Path]):
    for content, words in [
        (None, "has no config.json"),
        ("{", "config.json is not JSON"),
        ("[]", "config.json is not a JSON object"),
        ('{"architectures": ["LlamaForCausalLM"]}', "config.json has no model_type"),
        (
            '{"model_type": "perceptron_1958"}',
            f"'perceptron_1958' is not known to the installed transformers {transformers.__version__}",
        ),
        ('{"model_type": "llama", "num_hidden_layers": "four"}', "num_hidden_layers"),
    ]:
        with case(content):
            folder = next(copies)
            (folder / "config.json").unlink()
            if content is not None:
                (folder / "config.json").write_text(content)
            assert words in early(folder)


def test_a_multimodal_model_whose_text_part_is_no_stack_of_decoder_blocks_is_refused(early, copies: Iterator[Path]):
    folder = next(copies)
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "opt", "vocab_size": VOCABULARY, "hidden_size": 16, "ffn_dim": 16, "num_attention_heads": 2}
    config = transformers.Blip2Config(vision_config=part, qformer_config=part, text_config=text)
    config.architectures = ["Blip2ForConditionalGeneration"]
    config.save_pretrained(folder)
    assert "'blip-2' is not a causal (decoder-only) language model" in early(folder)


def test_code_of_a_repository_is_run_only_when_the_recipe_says_so(early, copies: Iterator[Path]):
    for name, changes in [
        ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}),
        ("config.json", {"model_type": "vit", "auto_map": {"AutoModelForCausalLM": "own.Own"}, "architectures": []}),
        ("tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}),
    ]:
        with case(name, changes):
            folder = next(copies)
            (folder / "own.py").write_text("raise AssertionError('the code is run')")
            edit_json(folder / name, **changes)
            assert "model.trust_remote_code=true" in early(folder)
    known = next(copies)  # by transformers: its own class serves
    edit_json(known / "config.json", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"})
    assert type(load(known).model).__name__ == "LlamaForCausalLM"


def test_code_of_a_repository_is_run_where_the_recipe_says_so(
    copies: Iterator[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = next(copies)
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    edit_json(folder / "config.json", model_type="own", auto_map=auto_map)
    assert type(load(folder, trust_remote_code=True).model).__name__ == "Own"


def test_a_tokenizer_that_the_library_cannot_parse_is_refused(early, copies: Iterator[Path]):
    for changes, words in [
        ({"version": "2.0"}, "Unknown tokenizer version '2.0'"),
        ({"model": {"type": "Later", "vocab": {}}}, "ModelUntagged"),
        ({"pre_tokenizer": {"type": "Later"}}, "PreTokenizerUntagged"),
        ({"model": {"type": "BPE"}}, "vocab"),
    ]:
        with case(changes):
            folder = next(copies)
            edit_json(folder / "tokenizer.json", **changes)
            message = early(folder)
            assert f"model.name={folder}: its tokenizer cannot be read" in message
            assert words in message


def test_a_tokenizer_that_can_produce_an_id_without_an_embedding_is_refused(early, copies: Iterator[Path]):
    extra = [f"<|extra {number}|>" for number in range(VOCABULARY)]
    pairs = [(first, second) for first in "ab" for second in "opqrstuvwxyz"]
    for what, template, merges in [
        ("in the template", tiny_models.CHATML.replace("<|im_start|>", extra[-1]), ()),
        ("in ordinary text", tiny_models.CHATML, pairs),
    ]:
        with case(what):
            folder = next(copies)
            tokenizer = tiny_models.tokenizer(template, merges)
            tokenizer.add_special_tokens({"extra_special_tokens": extra})
            tokenizer.save_pretrained(folder)
            assert "its tokenizer produces tokens without an embedding" in early(folder)


def test_added_tokens_without_an_embedding_that_no_chat_contains_are_named(copies: Iterator[Path]):
    folder = next(copies)
    tokenizer = tiny_models.tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<|extra {number}|>" for number in range(14)]})
    tokenizer.save_pretrained(folder)
    (warning,) = load(folder).notices
    assert warning.startswith("1 added token of the tokenizer without an embedding (<|extra 13|>)")


def in_fp8(weight_OI: Tensor, block: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """A weight as fp8 and its scales, one for each block or one for all, and what the two stand for in float32."""
    rows, columns = (block, block) if block else weight_OI.shape
    blocks = weight_OI.reshape(weight_OI.shape[0] // rows, rows, -1, columns)
    scale = blocks.abs().amax((1, 3), keepdim=True) / 448
    stored = (blocks / scale).to(torch.float8_e4m3fn)
    scale_inv = scale[:, 0, :, 0] if block else scale.squeeze()
    return stored.reshape(weight_OI.shape), scale_inv, (stored.float() * scale).reshape(weight_OI.shape)


def save_fp8(folder: Path, block: int | None) -> dict[str, Tensor]:
    """Quantises the Llama in `folder`, all but one projection; the weights that it stands for."""
    means, stored = load_file(folder / SINGLE), {}
    for name, weight in means.items():
        if "layers" not in name or weight.ndim == 1 or "down_proj" in name:
            stored[name] = weight
            continue
        stored[name], stored[f"{name}_scale_inv"], means[name] = in_fp8(weight, block)
        if block is None:
            stored[name.replace("weight", "activation_scale")] = torch.ones(())
    save_file(stored, folder / SINGLE, metadata={"format": "pt"})
    scheme = {"weight_block_size": [block, block], "activation_scheme": "dynamic"}
    if block is None:
        scheme = {"weight_block_size": None, "activation_scheme": "static"}
    quantised = {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "down_proj"]} | scheme
    edit_json(folder / "config.json", quantization_config=quantised)
    return means


def save_mxfp4(folder: Path) -> dict[str, Tensor]:
    """A gpt-oss whose experts are stored in MXFP4; the weights that it stands for."""
    (folder / SINGLE).unlink()
    config = transformers.GptOssConfig(
        **tiny_models.TEXT | {"intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2}
    )
    transformers.GptOssForCausalLM(config).save_pretrained(folder)
    means, stored = load_file(folder / SINGLE), {}
    digits = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    source = torch.Generator().manual_seed(0)
    for name, weight in means.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = weight
            continue
        experts, inner, outer = weight.shape  # stored as [expert, outer, inner / 32, 32], two digits a byte
        codes = torch.randint(16, (experts, outer, inner // 32, 32), generator=source)
        powers = torch.randint(-4, 1, (experts, outer, inner // 32), generator=source)
        stored[f"{name}_blocks"] = (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8)
        stored[f"{name}_scales"] = (127 + powers).to(torch.uint8)
        values = digits[codes % 8] * torch.where(codes < 8, 1, -1) * 2.0 ** powers[..., None]
        means[name] = values.reshape(experts, outer, inner).transpose(1, 2)
    save_file(stored, folder / SINGLE, metadata={"format": "pt"})
    edit_json(folder / "config.json", quantization_config={"quant_method": "mxfp4"})
    return means


def test_weights_in_fp8_or_mxfp4_are_loaded_as_the_floating_point_that_they_stand_for(
    copies: Iterator[Path], tmp_path: Path
):
    for what, save, attention in [
        ("fp8 in blocks", lambda folder: save_fp8(folder, 16), "sdpa"),
        ("fp8, one scale a weight", lambda folder: save_fp8(folder, None), "sdpa"),
        ("mxfp4", save_mxfp4, "eager"),
    ]:
        with case(what):
            folder = next(copies)
            means = save(folder)
            model = load(folder, attention=attention)
            loaded = model.model.state_dict()
            assert loaded.keys() == means.keys()
            assert all(torch.equal(loaded[name], weight) for name, weight in means.items())
            accumulator = Accumulator(model, rank=2, alpha=2, layers=[1])
            accumulator.start_round(0)
            model.model(input_ids=torch.tensor([[3, 4, 5]])).logits.square().mean().backward()
            assert all(weight.grad is not None for weight in accumulator.trainable().values())
            saved = tmp_path / f"saved {what}"
            load(folder, attention=attention).model.save_pretrained(saved)
            assert "quantization_config" not in json.loads((saved / "config.json").read_text())


def test_weights_in_another_quantised_form_are_refused_and_the_method_is_named(early, copies: Iterator[Path]):
    folder = next(copies)
    for stored, method in [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "of_tomorrow"}, "of_tomorrow"),
    ]:
        for where in ("quantization_config", "text_config"):
            with case(method, where):
                edit_json(folder / "config.json", quantization_config=None, text_config=None)
                nested = stored if where == "quantization_config" else {"quantization_config": stored}
                edit_json(folder / "config.json", **{where: nested})
                message = early(folder)
                assert f"its weights are quantised ({method})" in message
                assert "give the unquantised repository" in message
    save_fp8(folder, 16)
    assert "quantised already (fp8)" in early(folder, load_4bit=True)
