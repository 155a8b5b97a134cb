"""Several processes that compute one run: rows are dealt out, the first alone writes and speaks, all end together.

Every process runs the same program on the same inputs. Where rows become numbers, `over_rows` has each process compute
its share and gives everybody the results of all; where there is one process, all of them are its share. Whatever
touches the run folder is done `by_first`. An error in either is raised in every process. Nothing here imports torch
until there are several processes.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import wraps
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from heal.errors import UserError
from heal.launcher import Launched, on_cpu
from heal.messages import Lost, Outcome, Traffic, World, from_first, gathered, others_there

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
P = ParamSpec("P")

JOINING = timedelta(minutes=5)  # until every process that was announced is there
_WAITING = timedelta(days=7)  # for a process that uploads, or has more to compute
_SPOKEN, _OVER = "spoken", "over"  # keys of the store
_LINGER = 2.0  # seconds


class Stopped(Exception):
    """What this process was doing is over, because another one has failed; its error comes when all are together."""


@dataclass
class _State:
    world: World | None = field(default=None)


_STATE = _State()


def start(this: Launched, joining: timedelta = JOINING) -> None:
    """Joins the other processes that the launcher started; nothing where there is one.

    A process on a machine with GPUs sees the one of its local rank alone, unless the launcher asks for CPUs.

    Raises:
        UserError: they are not all there within `joining`, or two of them have the same GPU.
    """
    if this.size == 1:
        return
    import torch
    from torch import distributed as dist

    gpus = 0 if on_cpu() else torch.cuda.device_count()
    if gpus >= this.local_size:  # every library takes the first one that it sees; a scheduler may show one alone
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[this.local_rank] if any(seen) else str(this.local_rank)
    try:
        store, _, _ = next(dist.rendezvous("env://", this.rank, this.size, timeout=joining))
        store = dist.PrefixStore("heal", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=store,
            rank=this.rank,
            world_size=this.size,
            timeout=joining,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"{this.size} processes were announced (WORLD_SIZE), but did not find each other within "
            f"{joining.total_seconds():g} s ({_first_line(error)}); start them all with torchrun or accelerate launch"
        ) from error
    world = World(this, store, dist.new_group(backend="gloo", timeout=_WAITING))
    _STATE.world = world
    cards = together(lambda: (socket.gethostname(), str(torch.cuda.get_device_properties(0).uuid) if gpus else rank()))
    if len(set(cards)) < this.size:
        raise UserError(f"{this.size} processes were launched on {len(set(cards))} GPUs; start one for each GPU")


def finish() -> None:
    """Parts from the other processes, all of which have come to their end."""
    if _STATE.world is None:
        return
    from torch import distributed as dist

    together(lambda: None)
    _STATE.world = None
    dist.destroy_process_group()


def size() -> int:
    """How many processes there are."""
    return 1 if _STATE.world is None else _STATE.world.this.size


def here() -> int:
    """How many of them are on this machine."""
    return 1 if _STATE.world is None else _STATE.world.this.local_size


def rank() -> int:
    """Which of them this one is, from 0."""
    return 0 if _STATE.world is None else _STATE.world.this.rank


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def traffic() -> Traffic:
    """What this process has done together with the others so far."""
    return Traffic() if _STATE.world is None else _STATE.world.traffic


def speaks() -> bool:
    """Whether this process says why all of them end: the first that asks does."""
    world = _STATE.world
    if world is None:
        return True
    try:
        return bool(world.store.add(_SPOKEN, 1) == 1)
    except RuntimeError:  # the store ended with the process that held it, the first
        return world.this.rank == 1


def part() -> None:
    """Called before a process ends early: the first, if it holds the store, waits a moment for those that ask it."""
    world = _STATE.world
    if world is None or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    until = time.monotonic() + _LINGER
    with suppress(RuntimeError):
        over = world.store.add(_OVER, 1)
        while world.this.rank == 0 and over < world.this.size and time.monotonic() < until:
            time.sleep(0.02)
            over = world.store.add(_OVER, 0)


def together(work: Callable[[], T]) -> list[T]:
    """What `work` returns in every process, in the order of their ranks, in every process; tensors come to the CPU.

    Nothing inside `work` is dealt out.

    Raises:
        Exception: the first error of any process. What only its process can tell is an `Elsewhere` in the others.
        Lost: a process ended meanwhile.
    """
    world = _shared()
    if world is None:
        return [work()]
    begin = time.perf_counter()
    mine = _attempt(world, work)
    world.traffic += Traffic(seconds=time.perf_counter() - begin)
    return _settled(gathered(world, mine))


def by_first(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, which alone does it; see `together`."""
    world = _shared()
    if world is None:
        return work()
    outcome = _attempt(world, work if world.this.rank == 0 else lambda: None)
    value: T = _settled([from_first(world, outcome if world.this.rank == 0 else None)])[0]
    return value


def first_alone(function: Callable[P, T]) -> Callable[P, T]:
    """The function as the first process alone calls it; the others get what it returns, or its error."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        return by_first(lambda: function(*args, **kwargs))

    return called


def local_first(work: Callable[[], T]) -> T:
    """What `work` returns here; one process of each machine does it before the others, which find its files there."""
    world = _shared()
    if world is None:
        return work()
    found: list[T] = []
    for turn in (True, False):
        mine = (world.this.local_rank == 0) == turn
        together(lambda mine=mine: found.append(work()) if mine else None)  # type: ignore[misc]
    return found[0]


def over_rows(count: int, work: Callable[[range], Sequence[T]]) -> list[T]:
    """What `work` returns for all of `count` rows, each process given a contiguous share of them.

    Args:
        count: of rows.
        work: a share of them -> one result a row; may be asked for any share but an empty one. Nothing inside it is
            dealt out.
    """
    if _shared() is None:
        return list(work(range(count))) if count else []
    mine = share(count)
    parts = together(lambda: list(work(mine)) if mine else [])
    return [result for results in parts for result in results]


def share(count: int) -> range:
    """Those of `count` rows that this process computes; the same whenever it is asked."""
    return range(count) if _shared() is None else shares(count, size())[rank()]


def shares(count: int, parts: int) -> list[range]:
    """`count` rows in so many contiguous parts, the first of which have one more where they do not divide."""
    least, more = divmod(count, parts)
    edges = [index * least + min(index, more) for index in range(parts + 1)]
    return [range(low, high) for low, high in pairwise(edges)]


def summed(tensors: Sequence["Tensor"]) -> None:
    """Makes each tensor the sum of what it is in all processes, in place; all of one dtype and on one device.

    Every process must get here: see that none has failed first (`together`).
    """
    world = _shared()
    if world is None or not tensors:
        return
    import torch
    from torch import distributed as dist

    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with others_there(world):
        dist.all_reduce(flat)
    world.traffic += Traffic(sent=flat.nbytes)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def largest(number: int) -> int:
    """The largest of the numbers that the processes give, who wait for each other."""
    world = _STATE.world
    if world is None:
        return number
    import torch
    from torch import distributed as dist

    found = torch.tensor(number)
    with others_there(world):
        dist.all_reduce(found, dist.ReduceOp.MAX, group=world.control)
    return int(found)


def keep_company(until_all_are_done: Callable[[Exception | None], None] | None) -> None:
    """What a process does from now on when its own work in `together` is done, or has failed, before the others'."""
    if _STATE.world is not None:
        _STATE.world.keep_company = until_all_are_done


@contextmanager
def at_once() -> Iterator[None]:
    """Around what all processes do at once: who fails inside it cannot talk to the others any more, and must end."""
    world = _STATE.world
    try:
        yield
    except BaseException as error:
        lost = isinstance(error, RuntimeError) and _of_a_connection(error)
        torn = Lost() if lost else error
        if world is not None:
            world.torn = torn
        if lost:
            raise torn from error
        raise


def _shared() -> World | None:
    """The processes, where work is dealt out now; None where this one computes by itself."""
    world = _STATE.world
    return None if world is None or world.alone else world


def _attempt(world: World, work: Callable[[], Any]) -> Outcome:
    world.alone = True
    value, failure = None, None
    try:
        value = work()
    except Stopped:
        pass
    except Exception as error:
        if world.torn is not None:
            raise
        failure = error
    finally:
        world.alone = False
    if world.keep_company is not None:
        world.keep_company(failure)
    return Outcome(world.this.rank, value, failure)


def _settled(outcomes: Sequence[Outcome]) -> list[Any]:
    """The values; raises the first error, which its own process raises with its traceback."""
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return [outcome.value for outcome in outcomes]


def _of_a_connection(error: RuntimeError) -> bool:
    """Whether gloo or NCCL raised it because another process has gone."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo/transport" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
