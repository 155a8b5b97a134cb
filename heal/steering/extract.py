"""Reads persona activations at the assistant tag and turns them into a steering vector."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch import Tensor

from heal.models.language_model import LanguageModel, right_padded, token_batches
from heal.progress import Progress, silent
from heal.steering.mean_diff import PairActivations, mean_diff
from heal.steering.vector import SteeringVector
from heal.trait import Trait

CONTEXTS = Path(__file__).resolve().parent.parent / "data" / "contexts.jsonl"

# One entry a method: a stream of pair activations -> directions by block.
METHODS: dict[str, Callable[[Iterator[PairActivations]], dict[int, Tensor]]] = {"mean_diff": mean_diff}


def contexts(count: int) -> list[str]:
    """The first `count` of the embedded contexts (kinds alternate, so any prefix is a mix)."""
    lines = CONTEXTS.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:count]]


def extract(
    language_model: LanguageModel,
    trait: Trait,
    texts: Sequence[str],
    method: str,
    layers: Sequence[int],
    batch_tokens: int,
    progress: Progress = silent,
) -> SteeringVector:
    """A steering vector of the model as it stands (the current student), read at the last prompt token.

    Args:
        language_model: the model.
        trait: whose personas are contrasted.
        texts: contexts, each asked under both personas.
        method: a key of METHODS.
        layers: blocks whose outputs are read.
        batch_tokens: tokens of a forward pass.
        progress: told (pairs done, pairs).
    """
    stream = pair_activations(language_model, trait, texts, layers, batch_tokens, progress)
    return SteeringVector(METHODS[method](stream), method, language_model.name, trait.name)


def pair_activations(
    language_model: LanguageModel,
    trait: Trait,
    texts: Sequence[str],
    layers: Sequence[int],
    batch_tokens: int,
    progress: Progress = silent,
) -> Iterator[PairActivations]:
    """Batches of (positive, negative) last-token activations by block, each `[B, D]`."""
    chat = language_model.chat
    pairs = [(chat.ids(trait.positive, text), chat.ids(trait.negative, text)) for text in texts]
    done = 0
    for batch in token_batches([2 * max(map(len, pair)) for pair in pairs], batch_tokens):
        rows = [pairs[index][0] for index in batch] + [pairs[index][1] for index in batch]
        h_by_layer = last_token_activations(language_model, rows, layers)
        half = len(batch)
        yield (
            {layer: h_BD[:half] for layer, h_BD in h_by_layer.items()},
            {layer: h_BD[half:] for layer, h_BD in h_by_layer.items()},
        )
        done += half
        progress(done, len(pairs))


class _Stop(Exception):
    """Leaves the forward pass after the last block that is needed."""


@torch.inference_mode()
def last_token_activations(
    language_model: LanguageModel, rows: Sequence[Sequence[int]], layers: Sequence[int]
) -> dict[int, Tensor]:
    """Outputs `[B, D]` of `layers` at each row's last token; the pass stops after the deepest of them."""
    ids_BT = right_padded(rows, language_model.pad_id, language_model.device)
    last_B = torch.tensor([len(row) - 1 for row in rows], device=ids_BT.device)
    row_B = torch.arange(len(rows), device=ids_BT.device)
    found: dict[int, Tensor] = {}
    deepest = max(layers)

    def reader(layer: int) -> Callable:
        def read(module, inputs, h_BTD: Tensor) -> None:
            found[layer] = h_BTD[row_B, last_B]
            if layer == deepest:
                raise _Stop

        return read

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(language_model.blocks[layer].register_forward_hook(reader(layer)).remove)
        with suppress(_Stop):
            language_model.decoder(input_ids=ids_BT, use_cache=False)
    return found
