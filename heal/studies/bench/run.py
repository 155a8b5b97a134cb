"""Runs benchmark pieces on the models that fit a device."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from heal.errors import RoundError, UserError, nearest
from heal.memory import out_of_memory, told
from heal.models.batching import release
from heal.models.load import load_language_model
from heal.options import resolve_device
from heal.recipe import load_recipe
from heal.studies.bench.limits import measured_limits
from heal.studies.bench.pieces import (
    Piece,
    barrier_piece,
    calibrate_piece,
    extract_piece,
    generate_piece,
    heal_piece,
    history_piece,
    pass_piece,
    reference_piece,
)
from heal.studies.bench.processes import processes_piece
from heal.studies.bench.setting import SHAPES, Setting, loader, random_loader, setting
from heal.studies.bench.table import Row
from heal.studies.bench.whole import round_piece
from heal.trait import load_trait

PIECES: dict[str, Piece] = {
    "heal": heal_piece,
    "barrier": barrier_piece,
    "reference": reference_piece,
    "generate": generate_piece,
    "extract": extract_piece,
    "calibrate": calibrate_piece,
    "history": history_piece,
    "round": round_piece,
    "processes": processes_piece,
}
# Those that depend on sizes and not on the text; a search for a dose does.
OF_SIZE: dict[str, Piece] = {name: piece for name, piece in PIECES.items() if name not in ("round", "processes")} | {
    "calibrate": pass_piece
}


def bench(
    names: Sequence[str],
    recipe: str,
    trait: str,
    device: str,
    threads: int,
    say: Callable[[str], None],
    shape: str = "auto",
) -> Iterator[Row]:
    """The rows of the pieces `names`, in order, each as soon as it is measured.

    What memory does not suffice for is a row without numbers, and the next piece, or shape, goes on.

    Args:
        names: keys of PIECES.
        recipe: its sizes are used.
        trait: its prompts are used.
        device: see `heal.options.resolve_device`.
        threads: of the CPU.
        say: receives each line of progress.
        shape: see `chosen_shapes`.

    Raises:
        UserError: no such recipe, trait, device or shape.
    """
    where = resolve_device(device)
    with_recipe, shapes = chosen_shapes(shape, where.type == "cuda")
    torch.set_num_threads(threads)
    made, prompts = load_recipe([f"recipe={recipe}", "scale=demo"]), load_trait(trait)
    load = loader(made.model, where)
    if with_recipe:
        say(f"setting up: {made.model.name} on {where}, {threads} threads")
        yield from _rows(names, PIECES, partial(setting, made, prompts, load), say)
    if shapes:
        like = load_language_model(made.model, torch.float32, torch.device("cpu"))  # its tokenizer
    for each in shapes:
        say(f"setting up: random weights of {each}'s shape on {where}, {threads} threads")
        make = partial(setting, made, prompts, random_loader(each, like, where))
        for row in _rows(names, OF_SIZE, make, say):
            yield replace(row, name=f"{row.name} {each}")


def chosen_shapes(text: str, gpu: bool) -> tuple[bool, list[str]]:
    """Whether the recipe's own model is timed, and which of SHAPES are.

    Args:
        text: "auto": the model, and on a GPU every shape; "none": the model alone; "all": every shape and no model;
            else the names of shapes, separated by commas.
        gpu: whether the device is one.

    Raises:
        UserError: a name that is no shape.
    """
    if text in ("auto", "none"):
        return True, list(SHAPES) if gpu and text == "auto" else []
    names = list(SHAPES) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SHAPES:
            raise UserError(f"shape={text}: no shape '{name}'{nearest(name, ['auto', 'none', 'all', *SHAPES])}")
    return False, names


def _rows(
    names: Sequence[str], pieces: Mapping[str, Piece], make: Callable[[], Setting], say: Callable[[str], None]
) -> Iterator[Row]:
    begin, there, limits, failed = time.perf_counter(), None, None, ""
    try:
        there = make()
        limits = measured_limits(there.model.device, there.model.model.dtype)
    except (RoundError, RuntimeError, MemoryError) as error:
        failed = _unmeasured(error)
    if there is None or limits is None:
        release()
        yield Row("setup", None, note=failed)
        return
    say(
        f"set up in {time.perf_counter() - begin:.1f} s; matrix products: {limits.flops / 1e9:,.0f} GFLOP/s in "
        f"{str(there.model.model.dtype).removeprefix('torch.')}, copies: {limits.bandwidth / 1e9:,.1f} GB/s"
    )
    chosen = [name for name in names if name in pieces]
    for number, name in enumerate(chosen, start=1):
        say(f"piece {number} of {len(chosen)}: {name}")
        failed = ""
        try:
            yield from pieces[name](there, limits)
        except (RoundError, RuntimeError, MemoryError) as error:
            failed = _unmeasured(error)
        if failed:  # the error, and what its traceback held, is gone
            yield Row(name, None, note=failed)
        release()


def _unmeasured(error: BaseException) -> str:
    """The note of a row that could not be measured for lack of memory, or since a round cannot go on.

    Raises:
        BaseException: the error itself, where it is another.
    """
    if isinstance(error, RoundError):
        return f"not measured: {error}"
    if out_of_memory(error):
        return f"not measured: {told(error)}"
    raise error
