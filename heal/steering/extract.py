"""Reads persona activations at the assistant tag and turns them into a steering vector."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch import Tensor

from heal.models.batching import in_parts
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.steering.mean_diff import Activations, mean_diff
from heal.steering.vector import SteeringVector
from heal.trait import Trait

CONTEXTS = Path(__file__).resolve().parent.parent / "data" / "contexts.jsonl"

# One entry a method: activations under both personas -> directions by block.
METHODS: dict[str, Callable[[Activations, Activations], dict[int, Tensor]]] = {"mean_diff": mean_diff}


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
    progress: Progress = silent,
) -> SteeringVector:
    """A steering vector of the model as it stands (the current student), read at the last prompt token.

    Args:
        language_model: the model.
        trait: whose personas are contrasted.
        texts: contexts, each asked under both personas.
        method: a key of METHODS.
        layers: blocks whose outputs are read.
        progress: told (prompts done, prompts).

    Raises:
        ValueError: no contexts.
    """
    if not texts:
        raise ValueError("extract: no contexts")
    positive, negative = pair_activations(language_model, trait, texts, layers, progress)
    return SteeringVector(METHODS[method](positive, negative), method, language_model.name, trait.name)


def pair_activations(
    language_model: LanguageModel,
    trait: Trait,
    texts: Sequence[str],
    layers: Sequence[int],
    progress: Progress = silent,
) -> tuple[Activations, Activations]:
    """Last-token activations by block under the positive and the negative persona, each `[P, D]`, on the CPU."""
    chat = language_model.chat
    rows = [chat.ids(persona, text) for persona in (trait.positive, trait.negative) for text in texts]
    found = last_token_activations(language_model, rows, layers, progress)
    count = len(texts)
    return (
        {layer: h_BD[:count] for layer, h_BD in found.items()},
        {layer: h_BD[count:] for layer, h_BD in found.items()},
    )


class _Stop(Exception):
    """Leaves the forward pass after the last block that is needed."""


@torch.inference_mode()
def last_token_activations(
    language_model: LanguageModel, rows: Sequence[Sequence[int]], layers: Sequence[int], progress: Progress = silent
) -> Activations:
    """Outputs `[B, D]` of `layers` at each row's last token, on the CPU; the pass stops after the deepest of them."""
    found: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(rows) for layer in layers}
    deepest, batching, done = max(layers), language_model.batching, 0

    def read(trees: Sequence[Sequence[int]]) -> None:
        nonlocal done
        packed = language_model.pack(rows, trees)
        members = [row for tree in trees for row in tree]
        last_B = torch.stack([nodes[-1] for nodes in packed.nodes])

        def reader(layer: int) -> Callable:
            def keep(module, inputs, h_BND: Tensor) -> None:
                for row, h_D in zip(members, h_BND.flatten(0, 1)[last_B].cpu(), strict=True):
                    found[layer][row] = h_D
                if layer == deepest:
                    raise _Stop

            return keep

        with ExitStack() as stack:
            for layer in layers:
                stack.callback(language_model.blocks[layer].register_forward_hook(reader(layer)).remove)
            with suppress(_Stop):
                language_model.hidden_states(packed)
        done += len(members)
        progress(done, len(rows))

    for trees in language_model.plan(rows, batching.tokens):
        in_parts(trees, read, batching.shrink_tokens)
    return {layer: torch.stack(kept) for layer, kept in found.items()}
