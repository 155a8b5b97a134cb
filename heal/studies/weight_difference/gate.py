"""A finished student as an intervention on its base: its whole update multiplied by a coefficient.

Coefficient 1 is the student, 0 the base, 2 twice the update. Shape suffixes: R rank, I inputs, O outputs.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from heal.errors import UserError
from heal.export.factors import Factors
from heal.records import read_json
from heal.run.folder import RunFolder
from heal.run.student import rounds_up_to
from heal.steering.weights import Update, WeightDifference

_BEFORE = "base_model.model."  # peft's prefix of module names


def adapter_gate(folder: RunFolder, last_round: int | None = None) -> WeightDifference:
    """The update of the student after `last_round` (default: the last finished one), from the run's adapters alone.

    No model is loaded: the saved adapters of the rounds are stacked, each with its scale inside its B, as the
    accumulator folds them.

    Args:
        folder: the run.
        last_round: counted from 0.

    Raises:
        UserError: no run, no finished round, not that round, or a round's files are damaged.
    """
    rounds = rounds_up_to(folder, last_round)
    adapters = [_saved(folder.round(index) / "adapter") for index in rounds]
    if len({frozenset(adapter) for adapter in adapters}) != 1:
        raise UserError(f"{folder.path}: the adapters of its rounds are not on the same Linears")
    layers = {
        name: (torch.cat([adapter[name][0] for adapter in adapters], 0), torch.cat([a[name][1] for a in adapters], 1))
        for name in adapters[0]
    }
    rank = next(iter(layers.values()))[0].shape[0]
    return gate_of(Factors(layers, rank), folder.recipe().model.name, folder.started().trait.name, rounds)


def gate_of(factors: Factors, model: str, trait: str, rounds: list[int]) -> WeightDifference:
    """A student's whole update, given as factors, as an intervention on the model of that name."""
    settings: dict[str, Any] = {"rounds": rounds, "rank": factors.rank}
    updates = {name: Update(pair) for name, pair in sorted(factors.layers.items())}
    return WeightDifference(updates, "adapter_gate", model, trait, settings=settings)


def _saved(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Module name -> (A `[R, I]`, B `[O, R]`) of a saved LoRA, its scale inside B, float32."""
    config = read_json(path / "adapter_config.json")
    scale = config["lora_alpha"] / config["r"]
    state = load_file(path / "adapter_model.safetensors")
    ends = ".lora_A.weight", ".lora_B.weight"
    names = sorted(name.removesuffix(ends[0]) for name in state if name.endswith(ends[0]))
    return {
        name.removeprefix(_BEFORE): (state[name + ends[0]].float(), scale * state[name + ends[1]].float())
        for name in names
    }
