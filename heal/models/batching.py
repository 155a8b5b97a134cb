"""How much goes through the model side by side: as much as pays, and less where memory is short.

No result depends on it beyond the rounding of the last bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from heal.errors import RoundError

T = TypeVar("T")

WORTH = 1.1  # a doubled batch must be this much faster to be kept
_LARGEST = 2**20
_FULL = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")  # of plain RuntimeErrors


@dataclass
class Batching:
    """Sizes of the forward passes; they shrink for good when one ran out of memory.

    The defaults are those of a CPU.

    Attributes:
        rows: rows decoded side by side.
        tokens: tokens of a teacher-forced pass.
        head_bytes: of float32 tensors over the vocabulary that may live at once in the loss.
    """

    rows: int = 96
    tokens: int = 4096
    head_bytes: int = 2**27

    def shrink_rows(self, planned: int, halvings: int) -> None:
        """Lowers `rows` to `planned` halved `halvings` times, unless it is lower already."""
        self.rows = max(1, min(self.rows, planned >> halvings))

    def shrink_tokens(self, planned: int, halvings: int) -> None:
        """Lowers `tokens` to `planned` halved `halvings` times, unless it is lower already."""
        self.tokens = max(1, min(self.tokens, planned >> halvings))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the process, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _FULL)


def in_parts(
    items: Sequence[T], work: Callable[[Sequence[T]], None], shrink: Callable[[int], None], halvings: int = 0
) -> None:
    """Does `work` on all items at once; where memory runs out, on each half of them, and so on.

    Args:
        items: what is worked on side by side.
        work: must leave nothing behind when it fails.
        shrink: told how often a batch has now been halved, so that later ones start smaller.
        halvings: how often `items` have been halved.

    Raises:
        RoundError: not even one item fits.
    """
    try:
        work(items)
        return
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if len(items) == 1:
            raise RoundError(f"out of memory with a single row ({str(error).splitlines()[0]})") from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    shrink(halvings + 1)
    half = len(items) // 2
    for part in (items[:half], items[half:]):
        in_parts(part, work, shrink, halvings + 1)


def fastest(rate: Callable[[int], float], start: int) -> int:
    """The size from which doubling stops paying: the rate grows by less than 10 %, or memory runs out.

    Args:
        rate: size -> items a second; may run out of memory.
        start: the smallest size tried, even; half of it comes back where it does not fit.
    """
    size, best = start // 2, 0.0
    while size < _LARGEST:
        try:
            found = rate(2 * size)
        except RuntimeError as error:
            if out_of_memory(error):
                return size
            raise
        if found < WORTH * best:
            return size
        size, best = 2 * size, found
    return size
