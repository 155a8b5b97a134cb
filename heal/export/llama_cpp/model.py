"""A merged model as one GGUF file, quantised by the package gguf."""

from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from heal.errors import UserError
from heal.export.llama_cpp.layout import Layout
from heal.export.llama_cpp.vocabulary import add_vocabulary
from heal.models.language_model import LanguageModel

FILE = "model.gguf"
TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q5_1": gguf.GGMLQuantizationType.Q5_1,
    "q5_0": gguf.GGMLQuantizationType.Q5_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
_FILE_TYPES = {"f32": "ALL_F32", **{name: f"MOSTLY_{name.upper()}" for name in TYPES if name != "f32"}}


def write_model(merged: LanguageModel, path: Path, quant: str) -> None:
    """Writes weights, metadata, vocabulary and chat template to `path`.

    Weights whose rows are no whole number of a type's blocks are in f16, vectors in f32.

    Args:
        merged: base with the update in its weights.
        path: the file.
        quant: one of `TYPES`.

    Raises:
        UserError: a family, rotary positions or a tokenizer that cannot be written.
    """
    model = merged.model
    layout = Layout.of(model)
    writer = gguf.GGUFWriter(path, layout.architecture)
    _add_metadata(writer, model, merged.name)
    writer.add_file_type(int(gguf.LlamaFileType[_FILE_TYPES[quant]]))
    end_id = merged.chat.tokenizer.eos_token_id
    ends = sorted(merged.chat.end_ids) or [end_id]
    rows = model.get_input_embeddings().weight.shape[0]
    add_vocabulary(writer, merged.chat.tokenizer, rows, end_id if end_id in ends else ends[0])
    tied = model.config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        values = layout.put(name, weight.detach().float().cpu()).contiguous().numpy()
        kind = _type_of(values, TYPES[quant])
        writer.add_tensor(layout.name(name), gguf.quantize(values, kind), raw_dtype=kind)
    if (factors := rotary_factors(model)) is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    finish(writer)


def _type_of(values: np.ndarray, wanted: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    if values.ndim == 1:
        return gguf.GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if values.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _add_metadata(writer: gguf.GGUFWriter, model: PreTrainedModel, name: str) -> None:
    config = model.config
    head = _head_width(model)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name.rstrip("/").rpartition("/")[2])
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def rotary_factors(model: PreTrainedModel) -> np.ndarray | None:
    """By what each frequency of the rotary positions is divided; None where nothing is scaled.

    Raises:
        UserError: a scaling that depends on the length of the text, scales attention too, or that llama.cpp does not
            read in this architecture.
    """
    parameters = model.config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return None
    if model.config.model_type != "llama" or kind not in ("linear", "llama3"):
        raise UserError(
            f"format=gguf: rotary positions of type '{kind}' in '{model.config.model_type}' are not written by heal; "
            "use format=model, which llama.cpp's convert_hf_to_gguf.py converts"
        )
    frequencies = model.get_decoder().rotary_emb.inv_freq.float().cpu()
    width = 2 * frequencies.numel()
    plain = parameters["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    factors: np.ndarray = (plain / frequencies.double()).float().numpy()
    return factors


def finish(writer: gguf.GGUFWriter) -> None:
    """Header, metadata and tensors, in this order."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_by_transformers(path: Path, model: PreTrainedModel) -> PreTrainedModel:
    """The file as transformers reads it, dequantised to float32.

    So is its metadata, but for what transformers does not read in every family: the heads' width and the rotary
    positions, which are those of `model`.
    """
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    config.head_dim, config.rope_parameters = _head_width(model), model.config.rope_parameters
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, config=config, dtype=torch.float32)
    return loaded.eval()


def _head_width(model: PreTrainedModel) -> int:
    config = model.config
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width
