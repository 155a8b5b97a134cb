"""What tests ask of the processor, and how to make a run of the tests pretend to be on another one.

`HEAL_TEST_THREADS=4`: torch's threads in every process of the tests (default 1: sums of floats come in one order).
`HEAL_TEST_DTYPE=bfloat16` or `float32`: what `model.dtype=auto` finds faster, whatever is measured here.

Older instruction sets are asked of the libraries themselves: `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2`, or
`default` and `SSE41`. No test may fail under any of these.
"""

import os

import torch

from heal.models import precision


def prepare() -> None:
    """Sets this process's threads, and what measuring a dtype's speed finds."""
    torch.set_num_threads(threads())
    if faster := os.environ.get("HEAL_TEST_DTYPE"):
        precision._matmul_gflops = lambda dtype: 2.0 if dtype == getattr(torch, faster) else 1.0


def threads() -> int:
    """How many a process of the tests computes with."""
    return int(os.environ.get("HEAL_TEST_THREADS", "1"))
