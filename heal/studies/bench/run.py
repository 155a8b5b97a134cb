"""Runs benchmark stages on the models that fit a device."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from heal.options import resolve_device
from heal.recipe import load_recipe
from heal.studies.bench.measure import Row, matmul_rate, print_rows
from heal.studies.bench.setting import SHAPES, Setting, loader, random_loader, setting
from heal.studies.bench.stages import (
    Stage,
    barrier_stage,
    calibrate_stage,
    extract_stage,
    generate_stage,
    heal_stage,
    history_stage,
    reference_stage,
)
from heal.studies.bench.whole import round_stage
from heal.trait import load_trait

__all__ = ["STAGES", "bench", "print_rows"]

STAGES: dict[str, Stage] = {
    "heal": heal_stage,
    "barrier": barrier_stage,
    "reference": reference_stage,
    "generate": generate_stage,
    "extract": extract_stage,
    "calibrate": calibrate_stage,
    "history": history_stage,
    "round": round_stage,
}
_OF_SIZE = ("heal", "barrier", "reference", "generate", "extract", "history")  # these depend on sizes, not on the text


def bench(
    names: Sequence[str], recipe: str, trait: str, device: str, threads: int, say: Callable[[str], None]
) -> list[Row]:
    """The rows of the stages `names`, in order.

    Args:
        names: keys of STAGES.
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
        say(f"stage {number} of {len(names)}: {name}")
        for row in STAGES[name](there, rate):
            rows.append(row)
            ratio = "" if row.ratio is None else f", ratio {row.ratio:.2f}"
            say(f"  {row.name}: {row.seconds:.3f} s{ratio}")
    return rows
