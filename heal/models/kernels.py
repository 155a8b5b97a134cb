"""Which of a model's layers compute without the fast kernels that were written for them."""

import re
from importlib.util import find_spec

import torch
from transformers import PreTrainedModel

# transformers' classes of recurrent and convolutional layers, and the packages of their kernels by import name.
_CONVOLUTION = {"causal_conv1d": "causal-conv1d"}
KERNELS = (
    (re.compile(r"(Delta(Net|Attention)|LinearAttention)$"), {"fla": "flash-linear-attention"} | _CONVOLUTION),
    (re.compile(r"(M|B)amba\w*(Mixer|Layer)$|FalconH1Mixer$"), {"mamba_ssm": "mamba-ssm"} | _CONVOLUTION),
    (re.compile(r"ShortConv(olution)?$"), _CONVOLUTION),
)


def kernels_of(layer: type) -> dict[str, str]:
    """Packages (import name to name on the index) of the fast kernels of a class of layers; none for most."""
    return next((packages for pattern, packages in KERNELS if pattern.search(layer.__name__)), {})


def slow_layers(model: PreTrainedModel, device: torch.device) -> list[str]:
    """A warning for every class of layers that computes in plain PyTorch because its kernels are missing.

    The kernels run on GPUs only: elsewhere the warning says so instead of what to install.
    """
    warnings = []
    for layer in sorted({type(module) for module in model.modules()}, key=lambda layer: layer.__name__):
        missing = [package for name, package in kernels_of(layer).items() if find_spec(name) is None]
        if not missing:
            continue
        slow = f"{layer.__name__} layers compute in plain PyTorch, correct but much slower than with their kernels"
        if device.type == "cuda":
            warnings.append(f"{slow}; run: pip install {' '.join(missing)}")
        else:
            warnings.append(f"{slow} ({', '.join(missing)}), which run on GPUs only")
    return warnings
