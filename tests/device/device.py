"""Gives this process the device of `device.cpp`; imported before torch, which asks only once whether there is CUDA.

Random numbers are not drawn on it, its only stream is always done, and attention takes its plain path. What it counts
is what heal asks of a GPU; how long a GPU would take, it cannot say.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

from tests.device.build import library

assert "torch" not in sys.modules, "tests.device.device has to be imported before torch"
_library = ctypes.CDLL(str(library()))
_library.device_counts.restype = ctypes.c_char_p
for _reading in (_library.device_allocated, _library.device_reserved, _library.device_peak, _library.device_refused):
    _reading.restype = ctypes.c_int64
_library.device_graph_begin.restype = ctypes.c_int64
_library.device_graph_replay.restype = ctypes.c_char_p
for _reading in (_library.device_limit, _library.device_graph_replay, _library.device_graph_drop):
    _reading.argtypes = [ctypes.c_int64]

sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # it looks for kernels of a real GPU

import torch  # noqa: E402

MEMORY = 80 * 2**30  # bytes, unless `limited`
_room = MEMORY


def allocated() -> int:
    """Bytes of the device that are in use."""
    return int(_library.device_allocated())


def peak() -> int:
    """The most that was in use since `reset_peak`, in bytes."""
    return int(_library.device_peak())


def refused() -> int:
    """How often memory ran out."""
    return int(_library.device_refused())


def reset_peak(device: object = None) -> None:
    """Begins a new peak."""
    _library.device_reset_peak()


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Inside the context the device has `size` bytes; whatever would exceed them raises torch.OutOfMemoryError."""
    global _room
    _room = size
    _library.device_limit(size)
    try:
        yield
    finally:
        _room = MEMORY
        _library.device_limit(MEMORY)


@dataclass
class Counts:
    """What was asked of the device.

    Attributes:
        kernels: operations started, the waiting ones included.
        waits: times that the CPU waited for the device.
        by_name: both, by operation.
    """

    kernels: int = 0
    waits: int = 0
    by_name: dict[str, int] = field(default_factory=dict)


@contextmanager
def counted() -> Iterator[Counts]:
    """Counts what is asked of the device inside the context; filled in when it ends."""
    counts = Counts()
    _library.device_counts()
    yield counts
    for line in _library.device_counts().decode().splitlines():
        what, number = line.split("\t")
        kind, name = what.split(" ", 1)
        if kind == "view":
            continue
        counts.by_name[name] = counts.by_name.get(name, 0) + int(number)
        counts.kernels += int(number)
        counts.waits += int(number) * (kind == "wait")


class Graph:
    """`torch.cuda.CUDAGraph` on the device."""

    def __init__(self) -> None:
        self.number = 0

    def replay(self) -> None:
        if failed := _library.device_graph_replay(self.number).decode():
            raise RuntimeError(failed)

    def __del__(self) -> None:
        _library.device_graph_drop(self.number)


@contextmanager
def _recording(graph: Graph, capture_error_mode: str) -> Iterator[None]:
    graph.number = _library.device_graph_begin()
    try:
        yield
    finally:
        if _library.device_graph_end():
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def _empty_cache() -> None:
    if _library.device_broken():
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED, please report a bug to PyTorch.")
    _library.device_empty_cache()


_waiting = 0  # torch's number: 2 where it is an error


def _forbid_waiting(mode: int | str) -> None:
    global _waiting
    _waiting = {"default": 0, "warn": 1, "error": 2}[mode] if isinstance(mode, str) else mode
    _library.device_forbid_waiting(int(_waiting == 2))


def _statistics(device: object = None) -> dict[str, int]:
    return {"allocated_bytes.all.current": allocated(), "allocated_bytes.all.peak": peak()}


_current = 0  # the index of the device that is asked when none is named; there is but one


def _exchange(index: int) -> int:
    global _current
    before, _current = _current, max(index, 0)
    return before


# What torch's CUDA build would answer.
_properties = SimpleNamespace(name="a device of the tests", major=9, minor=0, total_memory=MEMORY)
for _name, _answer in {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "is_bf16_supported": lambda including_emulation=True: True,
    "device_count": lambda: 1,
    "current_device": lambda: _current,
    "_exchange_device": _exchange,
    "_maybe_exchange_device": _exchange,
    "set_device": lambda device: None,
    "get_device_properties": lambda device=None: _properties,
    "get_device_capability": lambda device=None: (9, 0),
    "get_device_name": lambda device=None: _properties.name,
    "synchronize": lambda device=None: None,
    "empty_cache": _empty_cache,
    "get_sync_debug_mode": lambda: _waiting,
    "set_sync_debug_mode": _forbid_waiting,
    "mem_get_info": lambda device=None: (_room - allocated(), _room),
    "memory_allocated": lambda device=None: allocated(),
    "memory_reserved": lambda device=None: int(_library.device_reserved()),
    "max_memory_allocated": lambda device=None: peak(),
    "reset_peak_memory_stats": reset_peak,
    "memory_stats": _statistics,
    "get_rng_state": lambda device=None: torch.empty(0, dtype=torch.uint8),
    "set_rng_state": lambda state, device=None: None,
    "manual_seed": lambda seed: None,
    "manual_seed_all": lambda seed: None,
    "CUDAGraph": Graph,
    "graph": _recording,
}.items():
    setattr(torch.cuda, _name, _answer)

_histc = torch.histc
torch.histc = lambda input, *args, **kwargs: _histc(input.float(), *args, **kwargs)  # of integers the CPU has none
