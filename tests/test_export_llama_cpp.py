"""Exports for llama.cpp: read again by transformers and by the package gguf, they are the student and the vector."""

import dataclasses
import json
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from torch import Tensor

from heal.config import ModelConfig
from heal.errors import UserError
from heal.export.exportable import Settings
from heal.export.factors import history_factors
from heal.export.llama_cpp import control_vector, model
from heal.export.llama_cpp.export import export_control_vector, export_gguf, export_gguf_adapter
from heal.export.llama_cpp.layout import Layout
from heal.export.llama_cpp.vocabulary import split_name
from tests import finished, tiny
from tests.cases import case

SAME = 1e-7  # nats: what another order of sums changes in float32
ANY = 1e9  # max_kl that refuses nothing


def test_a_gguf_model_read_by_transformers_is_the_student(tmp_path: Path) -> None:
    for kind in ("llama", "qwen2", "qwen3"):
        with case(kind):
            base = tiny.save(kind, tmp_path / kind / "base")
            student = finished.student(finished.write_run(tmp_path / kind / "run", base))
            exact = export_gguf(student, tmp_path / kind / "f32", Settings(), "f32")
            assert exact.agreement.p95 <= SAME
            rounded = export_gguf(student, tmp_path / kind / "q8_0", Settings(max_kl=ANY), "q8_0")
            assert SAME < rounded.agreement.p95
            fields = gguf.GGUFReader(exact.path / model.FILE).fields
            tokens = fields["tokenizer.ggml.tokens"]
            assert len(tokens.data) == tiny.VOCABULARY
            template = student.model.chat.tokenizer.chat_template
            assert fields["tokenizer.chat_template"].contents() == template
            assert "FROM ./model.gguf" in (exact.path / "Modelfile").read_text()


def test_scaled_rotary_positions_divide_the_frequencies_by_what_the_file_says() -> None:
    for parameters in (
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        {
            **{"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0},
            **{"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        },
    ):
        with case(parameters["rope_type"]):
            config = transformers.LlamaConfig(**tiny.TEXT, rope_parameters=parameters)
            scaled = transformers.LlamaForCausalLM(config)
            plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny.TEXT))
            factors = model.rotary_factors(scaled)
            assert factors is not None
            divided = plain.model.rotary_emb.inv_freq / torch.from_numpy(factors)
            torch.testing.assert_close(divided, scaled.model.rotary_emb.inv_freq)


def test_rows_in_llama_cpp_s_order_come_back() -> None:
    layout = Layout("llama", 1, heads=4, key_heads=2, paired=True)
    rows_OI = torch.arange(64.0).reshape(32, 2)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"):
        with case(name):
            there = layout.put(name, rows_OI)
            assert not torch.equal(there, rows_OI)
            assert torch.equal(layout.back(name, there), rows_OI)
    assert torch.equal(layout.put("model.layers.0.self_attn.v_proj.weight", rows_OI), rows_OI)


def test_a_control_vector_holds_c_v_of_every_block_but_the_first(tmp_path: Path) -> None:
    language_model = tiny.load(tiny.save("gemma2", tmp_path / "base"))
    vector = tiny.vector(language_model, layers=(1, 3))
    config = ModelConfig(name=language_model.name)
    file = export_control_vector(vector, language_model, config, tmp_path / "control", -0.5)
    read = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in gguf.GGUFReader(file).tensors}
    assert read.keys() == {"direction.1", "direction.3"}
    for layer, v_D in vector.directions.items():
        assert torch.equal(read[f"direction.{layer}"], -0.5 * v_D)
    with pytest.raises(UserError, match="to the output of block 0"):
        first = tiny.vector(language_model, layers=(0, 1))
        export_control_vector(first, language_model, config, tmp_path / "first", 1.0)
