"""The measurements of a benchmark: wall time of several arms in turn, peak memory, FLOPs, and the limit of both."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Work = Callable[[], object]


def interleaved(arms: Mapping[str, Work], repeats: int, device: torch.device | str) -> dict[str, list[float]]:
    """Wall seconds of each run of each arm, in the order of the runs.

    Each arm first runs once without measurement (caches, allocators, lazy imports); then the arms take turns, so
    that other load on the machine affects all of them alike, and the runs of one turn are pairs.

    Args:
        arms: name -> work, whose return value is ignored.
        repeats: measured runs of each arm.
        device: where the work is done; a GPU is synchronised before the clock is read.
    """
    for work in arms.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, work in arms.items():
            _wait(device)
            start = time.perf_counter()
            work()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_seconds(arms: Mapping[str, Work], repeats: int, device: torch.device | str) -> dict[str, float]:
    """The median of `interleaved` for each arm, seconds."""
    return {name: statistics.median(runs) for name, runs in interleaved(arms, repeats, device).items()}


def peak_bytes(work: Work, device: torch.device | str) -> int:
    """Peak bytes that torch had allocated on `device` while `work()` ran, above those at its start.

    On a GPU these are the caching allocator's allocated (not reserved) bytes. On a CPU the profiler records
    each allocation of a tensor's memory. That is exact, gradients of a backward pass included, but omits what a
    kernel or another thread allocates for itself, and does not subtract memory that existed before and is freed
    meanwhile. Every operation is recorded, so this is slow: for one piece, not for a whole run.
    """
    _wait(device)
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        work()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - start
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    results = recorded.profiler.kineto_results if recorded.profiler is not None else None
    assert results is not None
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):  # a stable sort: ties keep the order of the records
        held += change
        peak = max(peak, held)
    return peak


def count_flops(work: Work) -> int:
    """Floating-point operations of the matrix products and attention inside `work()`, forward and backward.

    A product `[m, k] @ [k, n]` counts 2 m n k. Attention counts its two products in full, causal or not, and
    five of them backward, since the fused kernels recompute the scores. Not counted: everything elementwise
    (norms, activations, softmax, log-softmax, KL, sampling, the optimiser), sums, embeddings and copies.
    """
    aten = torch.ops.aten
    cpu_attention = {  # torch's own list has only the GPU kernels
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=cpu_attention) as counter:
        work()
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None, seconds: float = 0.5) -> float:
    """FLOP/s of square matrix products: the fastest of the batches that were timed within `seconds`.

    Args:
        device: where.
        dtype: of both factors and the product.
        size: rows and columns; None: 2048, which fills a CPU, and 8192 elsewhere, which a large GPU needs.
        seconds: approximate duration of the measurement.
    """
    size = size or (2048 if device.type == "cpu" else 8192)
    a_NN, b_NN = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out_NN = a_NN @ b_NN
    best, count = 0.0, 1
    _wait(device)
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        for _ in range(count):
            torch.mm(a_NN, b_NN, out=out_NN)
        _wait(device)
        now = time.perf_counter()
        best = max(best, count * 2 * size**3 / (now - start))
        if now >= end:
            return best
        if now - start < seconds / 10:  # until the overhead of starting a batch is negligible
            count *= 2


def limit_share(flops: float, seconds: float, rate: float) -> float:
    """Fraction of the speed of a machine that does nothing but multiply at `rate` FLOP/s; 1 is that limit."""
    return flops / (seconds * rate)


@dataclass(frozen=True)
class Row:
    """One line of a benchmark; None where a quantity was not measured.

    Attributes:
        name: what was measured.
        seconds: wall seconds.
        baseline_seconds: wall seconds of what it is compared with.
        ratio: this over the baseline: below 1, this is faster (a ratio of something else where the note says so).
        limit_share: see `limit_share`.
        tokens_per_second: tokens over seconds.
        peak_bytes: see `peak_bytes`.
        note: what a reader must know.
    """

    name: str
    seconds: float
    baseline_seconds: float | None = None
    ratio: float | None = None
    limit_share: float | None = None
    tokens_per_second: float | None = None
    peak_bytes: int | None = None
    note: str = ""


_HEADER = ("name", "seconds", "baseline s", "ratio", "of limit", "tokens/s", "peak MiB", "note")
_TEXT = ("name", "note")  # aligned left; numbers right


def print_rows(rows: Sequence[Row], title: str = "") -> None:
    """The rows as one aligned table: drawn on a terminal, plain lines in a file or pipe."""
    console = Console(highlight=False, soft_wrap=True)
    lines = [_cells(row) for row in rows]
    if console.is_terminal:
        table = Table(title=title or None, title_justify="left", pad_edge=False)
        for name in _HEADER:
            table.add_column(name, justify="left" if name in _TEXT else "right")
        for cells in lines:
            table.add_row(*map(Text, cells))
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(_HEADER, *lines, strict=True)]
    if title:
        console.print(Text(title))
    for cells in (list(_HEADER), *lines):
        columns = zip(_HEADER, cells, widths, strict=True)
        placed = [cell.ljust(width) if name in _TEXT else cell.rjust(width) for name, cell, width in columns]
        console.print(Text("  ".join(placed).rstrip()))


def _attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad_out, query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_backward_flop_count(grad_out, query, key, value)


def _cells(row: Row) -> list[str]:
    mebibytes = None if row.peak_bytes is None else row.peak_bytes / 2**20
    values = (row.seconds, row.baseline_seconds, row.ratio, row.limit_share, row.tokens_per_second, mebibytes)
    forms = ("{:.3f}", "{:.3f}", "{:.2f}", "{:.1%}", "{:,.0f}", "{:,.1f}")
    shown = ["" if value is None else form.format(value) for value, form in zip(values, forms, strict=True)]
    return [row.name, *shown, row.note]


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
