"""What a launcher says in the environment: heal runs in one process, in the precision of its recipe."""

import os

from heal.errors import UserError

_SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_LOCAL = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
_LOCAL_SIZES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")

# What accelerate's configuration may ask for that heal does not do, and what heal has instead.
_FLAGS = {
    "ACCELERATE_USE_DEEPSPEED": "heal trains without DeepSpeed; launch it without",
    "ACCELERATE_USE_FSDP": "heal trains without FSDP; launch it without",
    "ACCELERATE_USE_MEGATRON_LM": "heal trains without Megatron-LM; launch it without",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "heal trains in one process; launch it without",
}
_CHOICES = {
    "ACCELERATE_MIXED_PRECISION": ("no", "heal computes in model.dtype; launch it with --mixed_precision no"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "heal compiles by heal.compile=true; launch it with --dynamo_backend no"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "heal accumulates by heal.accumulation; launch it without"),
}
_TRUE, _FALSE = ("1", "true", "yes", "on", "y", "t"), ("0", "false", "no", "off", "n", "f")


def one_process() -> None:
    """Reads what the launcher set, before anything waits for other processes, and forgets who of how many this is.

    A variable that is empty counts as not set. With one process no library has anybody to wait for, so the ranks are
    taken out of the environment.

    Raises:
        UserError: several processes, which heal does not shard over yet (only the first of them speaks), a rank that
            is no number or not of this many, or something of accelerate's that heal does not do.
    """
    ranks, sizes = _numbers((*_RANKS, *_LOCAL)), _numbers((*_SIZES, *_LOCAL_SIZES))
    launched = max(sizes.values(), default=1)
    for name, number in sizes.items():
        if number < 1:
            raise UserError(f"{name}={number}: expected 1, for one process; unset it")
    if launched > 1:
        if any(ranks.values()):
            raise SystemExit(2)
        raise UserError(f"{launched} processes were launched; heal runs in one: accelerate launch --num_processes 1")
    for name, number in ranks.items():
        if number != 0:
            raise UserError(f"{name}={number}: no rank of one process, which is what heal runs in; unset it")
    for name in (*ranks, *sizes):
        del os.environ[name]
    _refuse_unsupported()


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
