"""An adapter as a GGUF file that llama.cpp puts on the base (`--lora`): the factors in float32, scale 1."""

from pathlib import Path

import gguf
import torch
from transformers import PreTrainedModel

from heal.export.factors import ExportError, Factors
from heal.export.llama_cpp.layout import Layout
from heal.export.llama_cpp.model import finish

FILE = "adapter.gguf"


def write_adapter(factors: Factors, model: PreTrainedModel, path: Path) -> None:
    """Writes the factors to `path` in llama.cpp's names and order.

    Raises:
        UserError: a family that cannot be written.
    """
    layout = Layout.of(model)
    writer = gguf.GGUFWriter(path, layout.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(factors.rank))
    for name in sorted(factors.layers):
        a_RI, b_OR = factors.layers[name]
        there = layout.name(f"{name}.weight")
        writer.add_tensor(f"{there}.lora_a", a_RI.numpy())
        writer.add_tensor(f"{there}.lora_b", layout.put(f"{name}.weight", b_OR).contiguous().numpy())
    finish(writer)


def check_adapter(factors: Factors, model: PreTrainedModel, path: Path) -> None:
    """Raises ExportError unless the file holds exactly `factors`."""
    layout, reader = Layout.of(model), gguf.GGUFReader(path)
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    for name, (a_RI, b_OR) in factors.layers.items():
        there = layout.name(f"{name}.weight")
        back_OR = layout.back(f"{name}.weight", tensors[f"{there}.lora_b"])
        if not torch.equal(tensors[f"{there}.lora_a"], a_RI) or not torch.equal(back_OR, b_OR):
            raise ExportError(f"{name}: the exported factors are not those that were written; the export was removed.")
