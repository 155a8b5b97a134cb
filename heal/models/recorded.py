"""Work that a GPU is told once and then told to repeat: a CUDA graph.

Decoding one token starts some fifty kernels a block, each shorter than it takes to start it. Recorded, they start
together.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from heal.errors import RoundError
from heal.memory import out_of_memory

Work = Callable[[], tuple[Tensor, ...]]


class NotRecorded(RoundError):
    """Work that cannot be recorded, for a `reason`."""

    def __init__(self, reason: str):
        super().__init__(f"a step of decoding cannot be recorded as a CUDA graph ({reason}); set compute.graphs=false")
        self.reason = reason


class Recorded:
    """Calls `work`: the first time as it stands, the second time recording it, from then on by what was recorded.

    Recording runs nothing. So `work` may depend on nothing but tensors of the device that stay where they are, writes
    what it keeps in place, and never asks what is in them.
    """

    def __init__(self, work: Work):
        self._work = work
        self._warm = False  # libraries set themselves up the first time, which cannot be recorded
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: tuple[Tensor, ...] = ()

    def __call__(self) -> tuple[Tensor, ...]:
        """What the work returns, in memory of its own.

        Raises:
            NotRecorded: the work asks for something that is on the device, or moves what it needs.
        """
        if not self._warm:
            self._warm = True
            return self._work()
        if self._graph is None:
            self._record()
        assert self._graph is not None
        self._graph.replay()
        return tuple(tensor.clone() for tensor in self._result)

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # What other threads ask of the GPU meanwhile, such as a tracker, is not part of it.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._result = self._work()
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise NotRecorded(str(error).strip().splitlines()[0]) from error
        self._graph = graph
