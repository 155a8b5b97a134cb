"""How near to the limits of a machine a piece comes: its operations, its bytes, and what the machine can do of both."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, shape_wrapper
from transformers.cache_utils import DynamicLayer

from heal.models.language_model import LanguageModel
from heal.studies.bench.timing import Work, wait

# Rows of a matrix and bytes of a copy that are large enough: a CPU's and, elsewhere, a large GPU's.
MATRIX, MATRIX_GPU = 2048, 8192
COPIED, COPIED_GPU = 2**27, 2**30
_READ = 8  # tokens whose cache is looked at


@dataclass(frozen=True)
class Cost:
    """What a piece requires of a machine.

    Attributes:
        flops: see `count_flops`; None where they could not be counted.
        moved: bytes that have to be read from memory, at least; 0: negligible or unknown.
        note: why `flops` is None.
    """

    flops: int | None
    moved: int = 0
    note: str = ""


@dataclass(frozen=True)
class Share:
    """Fraction of the speed of a machine that does nothing but multiply, or nothing but read.

    Attributes:
        fraction: 1 is the limit; None where the cost is unknown.
        limit: the nearer of the two: "arithmetic" or "memory".
        note: what is missing.
    """

    fraction: float | None = None
    limit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Limits:
    """What a device can do, measured.

    Attributes:
        flops: per second, in matrix products.
        bandwidth: bytes per second, those read and those written, in a copy.
    """

    flops: float
    bandwidth: float

    def share(self, cost: Cost, seconds: float) -> Share:
        """The share of the nearer limit; of memory's alone where the operations could not be counted."""
        found = {"memory": cost.moved / (seconds * self.bandwidth)} if cost.moved else {}
        if cost.flops is not None:
            found["arithmetic"] = cost.flops / (seconds * self.flops)
        if not found:
            return Share(note=cost.note)
        limit = max(found, key=lambda name: found[name])
        return Share(found[limit], limit, cost.note)


def measured_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """See `matmul_rate` and `copy_rate`; takes about a second."""
    return Limits(matmul_rate(device, dtype), copy_rate(device))


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None, seconds: float = 0.5) -> float:
    """FLOP/s of square matrix products: the fastest of the batches that were timed within `seconds`.

    Args:
        device: where.
        dtype: of both factors and the product.
        size: rows and columns; None: MATRIX on a CPU, MATRIX_GPU elsewhere.
        seconds: approximate duration of the measurement.
    """
    size = size or (MATRIX if device.type == "cpu" else MATRIX_GPU)
    a_NN, b_NN = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    out_NN = a_NN @ b_NN
    return 2 * size**3 * _best_rate(lambda: torch.mm(a_NN, b_NN, out=out_NN), device, seconds)


def copy_rate(device: torch.device, size: int | None = None, seconds: float = 0.5) -> float:
    """Bytes/s of a copy within the device's memory, those read and those written: the fastest within `seconds`.

    Args:
        device: where.
        size: bytes copied; None: COPIED on a CPU, COPIED_GPU elsewhere.
        seconds: approximate duration of the measurement.
    """
    size = size or (COPIED if device.type == "cpu" else COPIED_GPU)
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size * _best_rate(lambda: target.copy_(source), device, seconds)


def count_flops(work: Work) -> Cost:
    """Floating-point operations of the matrix products and attention inside `work()`, forward and backward.

    A product `[m, k] @ [k, n]` counts 2 m n k. Attention counts its two products in full, causal or not, and
    five of them backward, since the fused kernels recompute the scores; heads that share keys count each. Not
    counted: everything elementwise (norms, activations, softmax, log-softmax, KL, sampling, the optimiser), sums,
    embeddings and copies.

    Where torch's formula for an operation refuses its shapes, the whole count is None, and the note names it.
    """
    aten = torch.ops.aten
    forward = [  # torch's own formulas lack the CPU's kernels and, before 2.13, heads that share keys
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_efficient_attention,
        aten._scaled_dot_product_cudnn_attention,
    ]
    backward = [getattr(aten, f"{kernel.__name__}_backward") for kernel in forward]
    formulas = flop_registry | {kernel: shape_wrapper(_attention) for kernel in forward}
    formulas |= {kernel: shape_wrapper(_attention_backward) for kernel in backward}
    refused: set[str] = set()
    careful = {kernel: _careful(formula, str(kernel), refused) for kernel, formula in formulas.items()}
    with FlopCounterMode(display=False, custom_mapping=careful) as counter:
        work()
    if refused:
        return Cost(None, note=f"FLOPs not counted: torch {torch.__version__} refuses {', '.join(sorted(refused))}")
    return Cost(counter.get_total_flops())


@torch.inference_mode()
def decoding_bytes(language_model: LanguageModel, lengths: Sequence[int], tokens: int) -> int:
    """Bytes that decoding has to read: the weights for each token, and each row's keys and values of all before it.

    Args:
        language_model: its parameters are read whole, LoRA included, save an input embedding that is not the head.
        lengths: of the prompts, tokens; all rows are decoded side by side.
        tokens: decoded for each row, the first of them from the pass over the prompt.
    """
    model = language_model.model
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    weights = sum(weight.nbytes for weight in model.parameters() if weight is head or weight is not embedding)
    ids_1T = torch.full((1, _READ), language_model.pad_id, device=language_model.device)
    layers = language_model.decoder(input_ids=ids_1T, use_cache=True).past_key_values.layers
    kept = [
        (layer.keys[0, :, 0].nbytes + layer.values[0, :, 0].nbytes, getattr(layer, "sliding_window", None) or math.inf)
        for layer in layers
        if isinstance(layer, DynamicLayer)
    ]
    cache = sum(
        size * int(min(length + step, window))
        for step in range(1, tokens)
        for length in lengths
        for size, window in kept
    )
    return tokens * weights + cache


def _best_rate(work: Work, device: torch.device, seconds: float) -> float:
    """Runs per second in the fastest of the batches that were timed within `seconds`."""
    work()
    best, count = 0.0, 1
    wait(device)
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        for _ in range(count):
            work()
        wait(device)
        now = time.perf_counter()
        best = max(best, count / (now - start))
        if now >= end:
            return best
        if now - start < seconds / 10:  # until the overhead of starting a batch is negligible
            count *= 2


def _careful(formula: Callable[..., int], name: str, refused: set[str]) -> Callable[..., int]:
    """The formula, which notes the operation in `refused` where it does not take its shapes."""

    def count(*args: Any, **kwargs: Any) -> int:
        try:
            return formula(*args, **kwargs)
        except (AssertionError, ValueError, TypeError):  # of the formula alone: the operation itself has succeeded
            refused.add(name)
            return 0

    count._get_raw = True  # type: ignore[attr-defined]  # takes tensors, as the formulas of the registry do
    return count


def _attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(grad_out, query, key, value, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])
