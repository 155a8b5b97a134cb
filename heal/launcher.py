"""What a launcher says in the environment: which process of how many this is, and the precision of the recipe."""

import os
from dataclasses import dataclass

from heal.errors import UserError

_TORCHRUN = {"size": "WORLD_SIZE", "rank": "RANK", "local_size": "LOCAL_WORLD_SIZE", "local_rank": "LOCAL_RANK"}
# Set by mpirun and its like, which start processes that know nothing of each other.
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_MPI_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_MPI_LOCAL = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
_MPI_LOCAL_SIZES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")

# What accelerate's configuration may ask for that heal does not do, and what heal has instead.
_FLAGS = {
    "ACCELERATE_USE_DEEPSPEED": "heal trains without DeepSpeed; launch it without",
    "ACCELERATE_USE_FSDP": "heal trains without accelerate's FSDP; launch it without",
    "ACCELERATE_USE_MEGATRON_LM": "heal trains without Megatron-LM; launch it without",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "heal deals rows out to processes by itself; launch it without",
}
_CHOICES = {
    "ACCELERATE_MIXED_PRECISION": ("no", "heal computes in model.dtype; launch it with --mixed_precision no"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "heal compiles by heal.compile=true; launch it with --dynamo_backend no"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "heal accumulates by heal.accumulation; launch it without"),
}
_TRUE, _FALSE = ("1", "true", "yes", "on", "y", "t"), ("0", "false", "no", "off", "n", "f")

HOW = "torchrun --nproc_per_node N -m heal train ... starts several"


@dataclass(frozen=True)
class Launched:
    """Which process of how many this is, over all machines and on this one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def launched() -> Launched:
    """Reads what the launcher set, before anything waits for other processes, and takes it out of the environment.

    A variable that is empty counts as not set. Without the ranks every library takes this for the only process: it
    is heal that deals work out (`heal.parallel`).

    Raises:
        UserError: several processes of a launcher that does not let them find each other, fewer than were asked for,
            a rank that is no number or not of this many, or something of accelerate's that heal does not do.
    """
    torchrun = _numbers(tuple(_TORCHRUN.values()))
    sizes, ranks = _numbers((*_MPI_SIZES, *_MPI_LOCAL_SIZES)), _numbers((*_MPI_RANKS, *_MPI_LOCAL))
    for name in (*torchrun, *sizes, *ranks):
        del os.environ[name]
    for name in (_TORCHRUN["size"], _TORCHRUN["local_size"]):
        if torchrun.get(name, 1) < 1:
            raise UserError(f"{name}={torchrun[name]}: expected at least 1; unset it")
    size = torchrun.get("WORLD_SIZE", 1)
    if size == 1 and (started := max(sizes.values(), default=1)) > 1:
        if any(ranks.values()):
            raise SystemExit(2)
        raise UserError(f"{started} processes were launched by MPI, which heal does not know; {HOW}")
    this = Launched(
        torchrun.get("RANK", 0),
        size,
        torchrun.get("LOCAL_RANK", torchrun.get("RANK", 0)),
        torchrun.get("LOCAL_WORLD_SIZE", size),
    )
    for name, number, most in (("RANK", this.rank, size), ("LOCAL_RANK", this.local_rank, this.local_size)):
        if not 0 <= number < most:
            raise UserError(f"{name}={number}: no rank of {_processes(most)}; unset it, or start heal with torchrun")
    if "WORLD_SIZE" not in torchrun:
        _refuse_one_of_several()
    _refuse_unsupported()
    return this


def _processes(number: int) -> str:
    return "one process" if number == 1 else f"{number} processes"


def _refuse_one_of_several() -> None:
    """UserError where `accelerate launch --num_processes N` started one process, as it does without `--multi_gpu`."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("MASTER_ADDR"):
        raise UserError(
            "accelerate launch --num_processes started one process (it starts several with --multi_gpu alone); on "
            "CPUs: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N heal/train.py ... (or, if one process is meant, "
            "unset MASTER_ADDR)"
        )


def _refuse_unsupported() -> None:
    for name in (*_FLAGS, *_CHOICES, "ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE"):
        if os.environ.get(name) == "":
            del os.environ[name]
    for name in (*_FLAGS, "ACCELERATE_USE_CPU"):
        text = os.environ.get(name, "no")
        if text.lower() not in _TRUE + _FALSE:
            raise UserError(f"{name}={text}: expected true or false")
        if name in _FLAGS and text.lower() in _TRUE:
            raise UserError(f"{name}={text}: {_FLAGS[name]}")
    for name, (supported, instead) in _CHOICES.items():
        text = os.environ.get(name, supported)
        if text.lower() != supported:
            raise UserError(f"{name}={text}: {instead}")


def on_cpu() -> bool:
    """Whether the launcher asks for CPUs."""
    return os.environ.get("ACCELERATE_USE_CPU", "no").lower() in _TRUE


def _numbers(names: tuple[str, ...]) -> dict[str, int]:
    """The variables that are set, as numbers; empty ones are taken out of the environment."""
    numbers = {}
    for name in names:
        text = os.environ.get(name)
        if text == "":
            del os.environ[name]
        elif text is not None:
            try:
                numbers[name] = int(text)
            except ValueError as error:
                raise UserError(f"{name}={text}: expected a number; unset it") from error
    return numbers
