"""A base in 4 bits (QLoRA): NF4 in blocks of 64 with double quantisation, by bitsandbytes.

What carries LoRA is dequantised for each product, `y = dequantised(W) x`, in the run's dtype; the embedding and the
head stay in that dtype, and so do experts in one tensor. Going backward, the same dequantised weights pass the gradient
on. Nothing of the base is written: an adapter is exact on the same 4 bits, and a merged model is another base.
"""

import torch
from torch import nn

from heal.errors import UserError


def quantisation(dtype: torch.dtype):
    """The configuration that transformers loads by; `dtype` is that of the products.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError("model.load_4bit=true requires bitsandbytes; run: pip install 'heal[4bit]'") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**_settings(dtype))


def as_code(dtype: torch.dtype, module: str = "") -> str:
    """The same as an argument of `from_pretrained`, to load a base without heal; `module` precedes the class."""
    settings = ", ".join(f"{name}={value!r}" for name, value in _settings(dtype).items())
    return f"quantization_config={module}BitsAndBytesConfig({settings})"


def _settings(dtype: torch.dtype) -> dict[str, bool | str]:
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
    }


def keep_one_form(model: nn.Module) -> None:
    """Has every pass compute with the weights as they were quantised.

    On a CPU that multiplies in bfloat16, bitsandbytes repacks a weight at its first pass without gradients: the scales
    lose bits, products are in bfloat16 whatever the dtype is, layers whose width is not a multiple of 64 fail, and no
    gradient passes any more (the norm of SmolLM2-135M's at the embedding falls from 13.4 to 0.03, without an error).

    Raises:
        UserError: no layer was quantised.
    """
    from bitsandbytes.nn import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    if not layers:
        raise UserError(
            f"model.load_4bit=true: no layer of {type(model).__name__} is a linear layer that could be quantised; "
            "leave it out"
        )
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
