"""What one process of a run tells the others, results and errors as bytes, and how these travel.

They are pickled, as torch.distributed itself does with objects: they come from the same program, over the connections
that its processes have made among themselves, and are never written to a file.

What travels is announced before it is sent, so that processes that have parted company notice it: they end, and do
not wait for each other.
"""

import io
import pickle
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from heal.errors import RoundError, UserError
from heal.launcher import Launched

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup, Store


class Elsewhere(Exception):
    """An error that another process has, and tells."""


class Lost(RoundError):
    """Another process has ended, and nobody knows why."""

    def __init__(self, text: str = "another process of this run ended without a word (killed, perhaps for memory)."):
        super().__init__(text)


@dataclass(frozen=True)
class Traffic:
    """What a process has done together with others: seconds in its shares, and bytes that it handed over."""

    seconds: float = 0.0
    sent: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.seconds + other.seconds, self.sent + other.sent)


@dataclass
class World:
    """The processes of this run.

    Attributes:
        this: which of them this one is.
        store: of keys that all of them see.
        control: gloo, for what is small: nobody waits inside a GPU's collective for a process that has failed.
        alone: whether this process computes by itself, so that nothing is dealt out.
        traffic: what it has computed and handed over so far.
        keep_company: see `heal.parallel.keep_company`; None: the others do not need this process for their work.
        torn: the error on which this process left something that all of them do at once.
    """

    this: Launched
    store: "Store"
    control: "ProcessGroup"
    alone: bool = False
    traffic: Traffic = field(default_factory=Traffic)
    keep_company: Callable[[Exception | None], None] | None = None
    torn: BaseException | None = None


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


def gathered(world: World, mine: Outcome) -> list[Outcome]:
    """The outcomes of all processes; its own is the very one that was given."""
    import torch
    from torch import distributed as dist

    content = packed(mine)
    lengths = _announced(world, "together", len(content))
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: len(content)] = torch.frombuffer(content, dtype=torch.uint8)
    received = [torch.empty_like(padded) for _ in lengths]
    with others_there(world):
        dist.all_gather(received, padded, group=world.control)
    world.traffic += Traffic(sent=len(content))
    return [
        mine if number == world.this.rank else unpacked(bytes(each[:length].numpy()))
        for number, (each, length) in enumerate(zip(received, lengths, strict=True))
    ]


def from_first(world: World, outcome: Outcome | None) -> Outcome:
    """The outcome of the first process, which alone gives one."""
    import torch
    from torch import distributed as dist

    content = bytearray() if outcome is None else packed(outcome)
    length = _announced(world, "by_first", len(content))[0]
    buffer = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(length, dtype=torch.uint8)
    with others_there(world):
        dist.broadcast(buffer, 0, group=world.control)
    world.traffic += Traffic(sent=len(content))
    return unpacked(bytes(buffer.numpy())) if outcome is None else outcome


def _announced(world: World, kind: str, length: int) -> list[int]:
    """How many bytes each process is about to send; all must be about to do the same."""
    import torch
    from torch import distributed as dist

    mine = torch.tensor([zlib.crc32(kind.encode()), length])
    received = [torch.empty_like(mine) for _ in range(world.this.size)]
    with others_there(world):
        dist.all_gather(received, mine, group=world.control)
    kinds, lengths = zip(*(each.tolist() for each in received), strict=True)
    assert len(set(kinds)) == 1, f"{kind}: another process does something else; they have parted company"
    return list(lengths)


@contextmanager
def others_there(world: World) -> Iterator[None]:
    """Turns a broken connection into `Lost`."""
    if world.torn is not None:
        raise world.torn
    try:
        yield
    except RuntimeError as error:
        raise Lost from error
