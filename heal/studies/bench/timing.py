"""The measurements of a benchmark: wall time of several arms in turn, and peak memory."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

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
            wait(device)
            start = time.perf_counter()
            work()
            wait(device)
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
    wait(device)
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        work()
        wait(device)
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


def wait(device: torch.device | str) -> None:
    """Until a GPU has done what it was asked; a CPU always has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
