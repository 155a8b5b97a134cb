"""Chooses the dtype of the base; on a CPU by measurement."""

import time

import torch

_SIZE = 512
_WORTH = 1.5  # bfloat16 must be this many times faster to justify its rounding


def resolve_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype that `model.dtype=name` stands for on `device`, and the reason in a few words."""
    if name != "auto":
        return getattr(torch, name), "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU multiplies in bfloat16"
        return torch.float32, "the GPU does not multiply in bfloat16"
    rates = {dtype: _matmul_gflops(dtype) for dtype in (torch.float32, torch.bfloat16)}
    ratio = rates[torch.bfloat16] / rates[torch.float32]
    chosen = torch.bfloat16 if ratio >= _WORTH else torch.float32
    return chosen, f"measured: bfloat16 multiplies at {ratio:.2f} times the speed of float32 here"


def set_tensor_cores(dtype: torch.dtype, device: torch.device) -> None:
    """On a GPU, float32 products in TF32 beside a base in 16 bits, whose LoRA they are; never in a float32 run."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if dtype.itemsize == 2 else "highest")


def _matmul_gflops(dtype: torch.dtype, seconds: float = 0.1) -> float:
    a_NN = torch.ones(_SIZE, _SIZE, dtype=dtype)
    _ = a_NN @ a_NN
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        _ = a_NN @ a_NN
        count += 1
    return count * 2 * _SIZE**3 / (time.perf_counter() - start) / 1e9
