"""Runs benchmark pieces on the models that fit a device."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from heal.options import resolve_device
from heal.recipe import load_recipe
from heal.studies.bench.pieces import (
    Piece,
    barrier_piece,
    calibrate_piece,
    extract_piece,
    generate_piece,
    heal_piece,
    history_piece,
    reference_piece,
)
from heal.studies.bench.setting import SHAPES, Setting, loader, random_loader, setting
from heal.studies.bench.timing import Row, matmul_rate, print_rows
from heal.studies.bench.whole import round_piece
from heal.trait import load_trait

__all__ = ["PIECES", "bench", "print_rows"]

PIECES: dict[str, Piece] = {
    "heal": heal_piece,
    "barrier": barrier_piece,
    "reference": reference_piece,
    "generate": generate_piece,
    "extract": extract_piece,
    "calibrate": calibrate_piece,
    "history": history_piece,
    "round": round_piece,
}
_OF_SIZE = ("heal", "barrier", "reference", "generate", "extract", "history")  # these depend on sizes, not on the text


def bench(
    names: Sequence[str], recipe: str, trait: str, device: str, threads: int, say: Callable[[str], None]
) -> list[Row]:
    """The rows of the pieces `names`, in order.

    Args:
        names: keys of PIECES.
        recipe: its sizes are used.
        trait: its prompts are used.
        device: see `heal.options.resolve_device`.
        threads: of the CPU.
        say: receives each line of progress and each row as it is measured.
    """
    torch.set_num_threads(threads)
    where = resolve_device(device)
    made = load_recipe([f"recipe={recipe}"])
    load = loader(made.model, where)
    say(f"setting up: {made.model.name} on {where}, {threads} threads")
    rows = _run(names, setting(made, load_trait(trait), load), say)
    if where.type == "cuda":
        like = load()
        for shape in SHAPES:
            say(f"setting up: random weights of {shape}'s shape")
            there = setting(made, load_trait(trait), random_loader(shape, like, where))
            shape_rows = _run([name for name in names if name in _OF_SIZE], there, say)
            rows += [replace(row, name=f"{row.name} {shape}") for row in shape_rows]
    return rows


def _run(names: Sequence[str], there: Setting, say: Callable[[str], None]) -> list[Row]:
    model = there.model.model
    rate = matmul_rate(model.device, model.dtype)
    say(f"matrix products: {rate / 1e9:,.0f} GFLOP/s in {str(model.dtype).removeprefix('torch.')}")
    rows = []
    for number, name in enumerate(names, start=1):
        say(f"piece {number} of {len(names)}: {name}")
        for row in PIECES[name](there, rate):
            rows.append(row)
            ratio = "" if row.ratio is None else f", ratio {row.ratio:.2f}"
            say(f"  {row.name}: {row.seconds:.3f} s{ratio}")
    return rows
