"""Work that a GPU is told once and then told to repeat: a CUDA graph.

Decoding one token starts some fifty kernels a block, each shorter than it takes to start it. Recorded, they start
together.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from heal.environment import notices_ignored
from heal.errors import RoundError
from heal.memory import out_of_memory

Work = Callable[[], tuple[Tensor, ...]]

_WAITED = "called a synchronizing CUDA operation"  # torch's words
_ADVICE = "set compute.graphs=false"


class NotRecorded(RoundError):
    """Work that cannot be recorded, for a `reason`."""

    def __init__(self, reason: str):
        super().__init__(f"a step of decoding cannot be recorded as a CUDA graph ({reason}); {_ADVICE}")
        self.reason = reason


class Recorded:
    """Calls `work`: the first time as it stands, the second time recording it, from then on by what was recorded.

    Recording runs nothing. So `work` may depend on nothing but tensors of the device that stay where they are, writes
    what it keeps in place, and never asks what is in them. The first time finds out whether it asks: a recording that
    breaks off leaves torch's allocator in it, and whatever gives memory back fails from then on.
    """

    def __init__(self, work: Work, device: torch.device):
        """Takes the work, and the device that it is done on: only what that one is told is recorded."""
        self._work = work
        self._device = device
        self._warm = False  # libraries set themselves up the first time, which cannot be recorded
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: tuple[Tensor, ...] = ()

    def __call__(self) -> tuple[Tensor, ...]:
        """What the work returns, in memory of its own.

        Raises:
            NotRecorded: the work asks for something that is on the device, or moves what it needs.
            RoundError: recording broke off all the same.
        """
        with torch.cuda.device(self._device):
            if not self._warm:
                self._warm = True
                return _without_waiting(self._work)
            if self._graph is None:
                self._record()
            assert self._graph is not None
            self._graph.replay()
            return tuple(tensor.clone() for tensor in self._result)

    def _record(self) -> None:
        graph, failed = torch.cuda.CUDAGraph(), None
        try:
            # What other threads ask of the GPU meanwhile, such as a tracker, is not part of it.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                try:
                    self._result = self._work()
                except RuntimeError as error:
                    failed = error
        except RuntimeError as error:
            reason = _first_line(failed or error)
            raise RoundError(
                f"recording a step of decoding as a CUDA graph broke off ({reason}), after which this process cannot "
                f"go on; {_ADVICE}"
            ) from error
        if failed is not None:
            raise failed if out_of_memory(failed) else NotRecorded(_first_line(failed)) from failed
        self._graph = graph


def _without_waiting(work: Work) -> tuple[Tensor, ...]:
    """What `work` returns; NotRecorded where the CPU has to wait for the device in it."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with notices_ignored():  # torch says that it does not notice every wait
            torch.cuda.set_sync_debug_mode("error")
        return work()
    except RuntimeError as error:
        if _WAITED not in str(error):
            raise
        raise NotRecorded(_first_line(error)) from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[0]
