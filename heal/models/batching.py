"""How many rows and tokens go through the model per pass: as many as pay, and fewer where memory is short.

No result depends on it beyond the rounding of the last bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from heal.memory import OutOfMemory, out_of_memory, told

T = TypeVar("T")

WORTH = 1.1  # a doubled batch must be this much faster to be kept


@dataclass
class Batching:
    """Sizes of the forward passes; they shrink permanently when one runs out of memory.

    The defaults are those of a CPU.

    Attributes:
        rows: rows decoded side by side.
        tokens: tokens of a teacher-forced pass.
        head_bytes: bytes of float32 tensors over the vocabulary that the loss may hold at once.
        completions: completions trained in one pass; 0: as many as `heal.batch_size` says.
    """

    rows: int = 96
    tokens: int = 4096
    head_bytes: int = 2**27
    completions: int = 0

    def shrink_rows(self, planned: int, halvings: int) -> None:
        """Lowers `rows` to `planned`, halved `halvings` times, unless it is already lower."""
        self.rows = max(1, min(self.rows, planned >> halvings))

    def shrink_head(self, planned: int, halvings: int) -> None:
        """Lowers `head_bytes` to `planned`, halved `halvings` times, unless it is already lower."""
        self.head_bytes = max(1, min(self.head_bytes, planned >> halvings))

    def shrink_tokens(self, planned: int, halvings: int) -> None:
        """Lowers `tokens` to `planned`, halved `halvings` times, unless it is already lower."""
        self.tokens = max(1, min(self.tokens, planned >> halvings))

    def shrink_completions(self, planned: int, halvings: int) -> None:
        """Lowers `completions` to `planned`, halved `halvings` times, unless it is already lower."""
        self.completions = max(1, min(self.completions or planned, planned >> halvings))


def release() -> None:
    """Gives back what the GPU's allocator keeps of memory that is no longer used."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def halves(items: Sequence[T]) -> tuple[Sequence[T], Sequence[T]] | None:
    """Both halves of a batch; None where it is a single item."""
    half = len(items) // 2
    return (items[:half], items[half:]) if half else None


def in_parts(
    items: Sequence[T],
    work: Callable[[Sequence[T]], None],
    shrink: Callable[[int], None],
    split: Callable[[Sequence[T]], tuple[Sequence[T], Sequence[T]] | None] = halves,
    halvings: int = 0,
) -> None:
    """Applies `work` to all items at once; where memory runs out, to each half of them, recursively.

    Args:
        items: processed in one batch.
        work: must leave no trace when it fails.
        shrink: called with the number of halvings so far, so that later batches start smaller.
        split: both halves of items; None where there is nothing to halve.
        halvings: how often `items` have already been halved.

    Raises:
        RoundError: not even one item fits.
    """
    parts = split(items)
    try:
        work(items)
        return
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if parts is None:
            raise told(error, "with a single row") from error
    release()
    shrink(halvings + 1)
    for part in parts or ():
        in_parts(part, work, shrink, split, halvings + 1)


def fastest(rate: Callable[[int], float], start: int, most: int = 2**20) -> int:
    """The size at which doubling stops paying: the rate grows by less than 10 %, or memory runs out.

    Args:
        rate: size -> items per second; may run out of memory.
        start: the smallest size tried; half of it is returned where it does not fit.
        most: the largest size tried, at least `start`; the last step to it may be less than a doubling.
    """
    size, best, next_size = start // 2, 0.0, start
    while size < most:
        try:
            next_rate = rate(next_size)
        except (RuntimeError, OutOfMemory) as error:
            if out_of_memory(error):
                return size
            raise
        if next_rate < WORTH * best:
            return size
        size, best, next_size = next_size, next_rate, min(2 * next_size, most)
    return size
