"""Tiny students: an accumulator with rounds that learned something, logits, and completions to heal on."""

from pathlib import Path

import torch
from torch import Tensor

from heal.accumulator import CURRENT, Accumulator
from heal.generation.collect import Completion
from heal.models.language_model import LanguageModel
from heal.randomness import generator
from tests.tiny import load

RANK, ALPHA = 4, 8
LAYERS = [1, 2]


def student(
    folder: Path, dtype: torch.dtype = torch.float32, rounds: int = 0, merge: bool = True, spread: bool = False
) -> tuple[LanguageModel, Accumulator]:
    """A freshly loaded model with `rounds` folded rounds of random weights and a fresh `current`."""
    language_model = load(folder, dtype, spread)
    accumulator = Accumulator(language_model, RANK, ALPHA, LAYERS, merge=merge)
    for r in range(rounds):
        accumulator.start_round(r)
        learn(accumulator, r)
        accumulator.fold()
    accumulator.start_round(rounds)
    return language_model, accumulator


def learn(accumulator: Accumulator, seed: int, size: float = 0.05) -> None:
    """Gives `current` weights that change something, as training would."""
    source = generator("learn", seed)
    with torch.no_grad():
        for name, weight in accumulator.trainable().items():
            if "lora_B" in name:
                weight.copy_(size * torch.randn(weight.shape, generator=source))


def weights(accumulator: Accumulator, part: str) -> dict[str, Tensor]:
    """Copies of the adapter weights whose name contains `part` (`history`, `current`, `lora_B` ...)."""
    found = {
        name: weight.detach().clone()
        for name, weight in accumulator.peft_model.named_parameters()
        if "lora_" in name and part in name
    }
    assert found
    return found


def only_current_trains(accumulator: Accumulator) -> bool:
    """Whether what has gradients is `current`, and nothing else."""
    names = [name for name, _ in accumulator.peft_model.named_parameters() if f".{CURRENT}." in name]
    return list(accumulator.trainable()) == names and len(names) > 0


@torch.no_grad()
def logits(language_model: LanguageModel) -> Tensor:
    """Logits `[B, T, V]` of the model as it stands, on a few rows of random ids."""
    return language_model.model(input_ids=torch.randint(3, 259, (3, 11), generator=generator("logits"))).logits


def completions(count: int, seed: int = 0) -> list[Completion]:
    """Kept completions of random ids and many lengths; every third one ended by itself."""
    rows = []
    for index in range(count):
        source = generator("completions", seed, index)
        prompt, said = (
            tuple(torch.randint(3, 259, (length,), generator=source).tolist())
            for length in (4 + index % 5, 3 + (index * 7) % 9)
        )
        ended = index % 3 == 0
        ids = (*said, 2) if ended else said
        rows.append(Completion(index, f"prompt {index}", 1.0, prompt, ids, f"text {index}", ended, 5.0, 0.1, ()))
    return rows


def put(folder: Path, files: dict[str, bytes]) -> Path:
    """Writes an adapter's files below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
