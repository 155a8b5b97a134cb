"""What one process of a run tells the others: results and errors as bytes.

They are pickled, as torch.distributed itself does with objects: they come from the same program, over the connections
that its processes have made among themselves, and are never written to a file.
"""

import io
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heal.errors import RoundError, UserError

if TYPE_CHECKING:
    from torch import Tensor


class Elsewhere(Exception):
    """An error that another process has, and tells."""


@dataclass(frozen=True)
class Outcome:
    """What came of a piece of work: a value or an error, and in which process."""

    rank: int
    value: Any = None
    error: Exception | None = None


def packed(outcome: Outcome) -> bytearray:
    """The outcome as bytes, tensors without what else their storage holds."""
    if outcome.error is not None and not isinstance(outcome.error, UserError | RoundError | OSError):
        outcome = Outcome(outcome.rank, error=Elsewhere(f"in process {outcome.rank}"))
    import torch

    class Pickler(pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return NotImplemented
            flat = value.detach().cpu().contiguous().reshape(-1)
            return _tensor, (flat.view(torch.uint8).numpy().tobytes(), flat.dtype, tuple(value.shape))

    file = io.BytesIO()
    Pickler(file, pickle.HIGHEST_PROTOCOL).dump(outcome)
    return bytearray(file.getbuffer())


def unpacked(content: bytes) -> Outcome:
    """The outcome that another process of this run packed."""
    outcome: Outcome = pickle.loads(content)
    return outcome


def _tensor(content: bytes, dtype: Any, shape: tuple[int, ...]) -> "Tensor":
    import torch

    return torch.frombuffer(bytearray(content), dtype=dtype).view(shape) if content else torch.empty(shape, dtype=dtype)
