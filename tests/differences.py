"""Random weight differences that fit a tiny model."""

import torch
from torch import Tensor

from heal.accumulator import linear_names
from heal.models.language_model import LanguageModel
from heal.randomness import generator
from heal.steering.weights import Update, WeightDifference, linear_at

RANK = 3


def difference(language_model: LanguageModel, layers: tuple[int, ...] = (1, 2), size: float = 0.1) -> WeightDifference:
    """Entries of deviation `size`: dense, low-rank, and dense with a bias in turn."""
    updates = {}
    for index, name in enumerate(linear_names(language_model, list(layers))):
        module = linear_at(language_model, name)
        source = generator("difference", index)
        shape = module.out_features, module.in_features

        def drawn(*size_of: int, source: torch.Generator = source) -> Tensor:
            return torch.randn(size_of, generator=source)

        if index % 3 == 1:
            updates[name] = Update((drawn(RANK, shape[1]), size * RANK**-0.5 * drawn(shape[0], RANK)))
        else:
            updates[name] = Update((size * drawn(*shape),), size * drawn(shape[0]) if index % 3 else None)
    return WeightDifference(updates, "weight_difference", language_model.name, "warm", settings={"adapter": "lora"})
