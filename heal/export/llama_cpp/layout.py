"""What llama.cpp calls a model's tensors, and how it orders their rows.

llama.cpp rotates neighbouring pairs of a head's components in Llama, transformers its two halves: the rows of `q_proj`
and `k_proj` change places. Qwen 2 and 3 are stored as transformers has them.

Shape suffixes: O outputs, I inputs of a Linear.
"""

import re
from dataclasses import dataclass

import gguf
import torch
from torch import Tensor
from transformers import PreTrainedModel

from heal.errors import UserError

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_PAIRED = ("llama",)  # whose rotary positions are stored as pairs


@dataclass(frozen=True)
class Layout:
    """Of one model.

    Attributes:
        architecture: its name in llama.cpp.
        blocks: number of them.
        heads, key_heads: of its attention.
        paired: whether rows of q_proj and k_proj change places.
    """

    architecture: str
    blocks: int
    heads: int
    key_heads: int
    paired: bool

    @staticmethod
    def of(model: PreTrainedModel) -> "Layout":
        """That of `model`; UserError for a family whose layout is not known here."""
        config = model.config
        arch = _ARCHITECTURES.get(config.model_type)
        if arch is None:
            raise UserError(
                f"format=gguf: heal writes {', '.join(_ARCHITECTURES)}, and this model is '{config.model_type}'; "
                "use format=model, which llama.cpp's convert_hf_to_gguf.py converts"
            )
        name = gguf.MODEL_ARCH_NAMES[arch]
        heads, key_heads = config.num_attention_heads, config.num_key_value_heads
        return Layout(name, config.num_hidden_layers, heads, key_heads, config.model_type in _PAIRED)

    def name(self, parameter: str) -> str:
        """The name of a parameter of transformers (`model.layers.0.mlp.up_proj.weight`) in llama.cpp."""
        arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        names = gguf.get_tensor_name_map(arch, self.blocks)
        found: str | None = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(f"format=gguf: llama.cpp has no tensor for {parameter} in its '{self.architecture}'")
        return found

    def put(self, parameter: str, rows_O: Tensor) -> Tensor:
        """Rows of a weight `[O, I]`, of a bias `[O]` or of a LoRA's B in llama.cpp's order."""
        heads = self._heads(parameter)
        return rows_O if heads is None else _swapped(rows_O, heads, 2)

    def back(self, parameter: str, rows_O: Tensor) -> Tensor:
        """The inverse of `put`."""
        heads = self._heads(parameter)
        return rows_O if heads is None else _swapped(rows_O, heads, rows_O.shape[0] // heads // 2)

    def _heads(self, parameter: str) -> int | None:
        """Heads whose rows change places; None where nothing does."""
        if not self.paired or not (found := re.search(r"\.([qk])_proj(\.|$)", parameter)):
            return None
        return self.heads if found[1] == "q" else self.key_heads


def _swapped(rows_O: Tensor, heads: int, parts: int) -> Tensor:
    rest = rows_O.shape[1:]
    per_head = rows_O.reshape(heads, parts, rows_O.shape[0] // heads // parts, *rest)
    return torch.transpose(per_head, 1, 2).reshape(rows_O.shape)
