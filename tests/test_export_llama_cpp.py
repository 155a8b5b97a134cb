"""Exports for llama.cpp: read again by transformers, gguf and heal, they are the student and the vector."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig

from heal.config import ModelConfig
from heal.errors import UserError
from heal.export.exportable import Settings
from heal.export.llama_cpp import adapter, model
from heal.export.llama_cpp.export import export_control_vector, export_gguf, export_gguf_adapter
from heal.export.llama_cpp.layout import Layout
from heal.export.llama_cpp.modelfile import modelfile
from heal.export.llama_cpp.vocabulary import split_name
from heal.steering.foreign import read_vector
from tests import finished, tiny
from tests.cases import case

SAME = 1e-6  # nats: what another order of float32 sums changes in tiny models, with room
ANY = 1e9  # max_kl that refuses nothing
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 5e3, "factor": 8.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
}


def dequantised(file: Path) -> dict[str, np.ndarray]:
    """Every tensor of a GGUF file in float32, as llama.cpp names and orders it."""
    return {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(file).tensors}


def test_a_gguf_model_read_by_transformers_is_the_student(tmp_path: Path) -> None:
    for kind in ("llama", "qwen2", "qwen3"):
        with case(kind):
            student = finished.student(
                finished.write_run(tmp_path / kind / "run", tiny.save(kind, tmp_path / kind / "base"))
            )
            written = export_gguf(student, tmp_path / kind / "f32", Settings(), "f32")
            assert written.agreement.p95 <= SAME
            fields = gguf.GGUFReader(written.path / model.FILE).fields
            assert len(fields["tokenizer.ggml.tokens"].data) == tiny.VOCABULARY
            assert fields["tokenizer.chat_template"].contents() == tiny.CHATML
            read, config = AutoConfig.from_pretrained(written.path, gguf_file=model.FILE), student.model.model.config
            for name in ("num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings"):
                assert getattr(read, name) == pytest.approx(getattr(config, name)), name


def test_quantised_weights_are_the_student_s_within_a_step_and_vectors_are_exact(tmp_path: Path) -> None:
    student = finished.student(finished.write_run(tmp_path / "run", tiny.save("llama", tmp_path / "base")))
    exact = dequantised(export_gguf(student, tmp_path / "f32", Settings(), "f32").path / model.FILE)
    for quant, step in (("f16", 2**-10), ("bf16", 2**-7), ("q8_0", 1 / 127), ("q4_0", 1 / 8)):
        with case(quant):
            written = export_gguf(student, tmp_path / quant, Settings(max_kl=ANY), quant)
            rounded = dequantised(written.path / model.FILE)
            assert rounded.keys() == exact.keys()
            for name, values in exact.items():
                width = step * np.abs(values).max() if values.ndim == 2 else 0
                assert np.abs(rounded[name] - values).max() <= width, name
            assert any((rounded[name] != values).any() for name, values in exact.items())
            assert "FROM ./model.gguf" in (written.path / "Modelfile").read_text()
    for system, line in (
        ("Be kind.", 'SYSTEM "Be kind."'),
        ('Say "yes" twice.', 'SYSTEM """Say "yes" twice."""'),
        ('Say "yes"', "# SYSTEM: "),
        ('Say """ once.', "# SYSTEM: "),
    ):
        with case(system):
            written = modelfile("x.gguf", student.model, replace(student.config, system=system))
            assert written.splitlines()[-1].startswith(line)


def test_an_adapter_s_products_are_what_the_merged_file_has_over_the_base_s(tmp_path: Path) -> None:
    for kind in ("llama", "qwen3"):
        with case(kind):
            student = finished.student(
                finished.write_run(tmp_path / kind / "run", tiny.save(kind, tmp_path / kind / "base"))
            )
            model.write_model(tiny.load(tmp_path / kind / "base"), tmp_path / kind / "base.gguf", "f32")
            base = dequantised(tmp_path / kind / "base.gguf")
            merged = dequantised(export_gguf(student, tmp_path / kind / "f32", Settings(), "f32").path / model.FILE)
            lora = export_gguf_adapter(student, tmp_path / kind / "lora", Settings())
            factors = dequantised(lora.path / adapter.FILE)
            reached = {name.removesuffix(".lora_a") for name in factors if name.endswith(".lora_a")}
            assert reached == {name for name in base if (merged[name] != base[name]).any()}
            for name in reached:
                product = factors[f"{name}.lora_b"] @ factors[f"{name}.lora_a"]
                np.testing.assert_allclose(merged[name] - base[name], product, rtol=0, atol=1e-5, err_msg=name)
            field = gguf.GGUFReader(lora.path / adapter.FILE).fields[gguf.Keys.Adapter.LORA_ALPHA]
            assert field.contents() == lora.rank  # scale 1


def test_scaled_rotary_positions_divide_the_frequencies_by_what_the_file_says() -> None:
    for parameters in ({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e3}, LLAMA3):
        with case(parameters["rope_type"]):
            scaled = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny.TEXT, rope_parameters=parameters))
            factors = model.rotary_factors(scaled)
            assert factors is not None
            unscaled = 5e3 ** -(torch.arange(0, 8, 2) / 8)
            torch.testing.assert_close(unscaled / torch.from_numpy(factors), scaled.model.rotary_emb.inv_freq)


def test_a_control_vector_holds_c_v_of_every_block_and_heal_reads_it(tmp_path: Path) -> None:
    language_model = tiny.load(tiny.save("gemma2", tmp_path / "base"), attention="eager")
    vector = tiny.vector(language_model, layers=(1, 3))
    config = ModelConfig(name=language_model.name)
    file = export_control_vector(vector, language_model, config, tmp_path / "control", -0.5)
    assert dequantised(file).keys() == {"direction.1", "direction.3"}
    read = read_vector(str(file), language_model, "warm").directions
    assert read.keys() == vector.directions.keys()
    for layer, v_D in vector.directions.items():
        assert torch.equal(read[layer], -0.5 * v_D), layer
    assert "--control-vector control-vector.gguf" in (file.parent / "README.md").read_text()


def test_what_llama_cpp_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    language_model = tiny.load(tiny.save("opt", tmp_path / "base"))
    config = ModelConfig(name=language_model.name)
    first = tiny.vector(language_model, layers=(0, 1))
    yarn = transformers.LlamaConfig(
        **tiny.TEXT, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    )
    refused = {
        "to the output of block 0": lambda: export_control_vector(first, language_model, config, tmp_path / "out", 1.0),
        "this model is 'opt'": lambda: Layout.of(language_model.model),
        "of type 'yarn' in 'llama'": lambda: model.rotary_factors(transformers.LlamaForCausalLM(yarn)),
        "none that heal can write": lambda: split_name({"type": "Metaspace", "replacement": "_"}),
    }
    for message, attempt in refused.items():
        with case(message), pytest.raises(UserError, match=message):
            attempt()
    assert not (tmp_path / "out").exists()


def test_ways_of_splitting_words_have_the_names_of_llama_cpp() -> None:
    digits = {"type": "Digits", "individual_digits": True}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    assert split_name(plain) == "gpt-2"
    assert split_name({"type": "Sequence", "pretokenizers": [digits, plain]}) == "smollm"
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    qwen2 = words + r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for regex, name in ((qwen2, "qwen2"), (qwen2.replace(r"\p{N}|", r"\p{N}{1,3}|"), "llama-bpe")):
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        assert split_name({"type": "Sequence", "pretokenizers": [split, plain | {"use_regex": False}]}) == name
