"""What a pass through a model takes of memory: measured on a GPU, counted roughly on a CPU.

Shape suffixes: B rows, or prefix trees, N tokens of each, D hidden size.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heal.models.cached import CachedRows
from heal.models.language_model import LanguageModel
from heal.models.packing import Packed, pack

_TOKENS = 64  # of the passes that are tried, and three times as many: a whole number of a recurrent layer's chunks
_TEMPORARY = 2  # what a block holds for a moment, on a CPU: as much as so many blocks keep for going backward


@dataclass(frozen=True)
class Footprint:
    """Bytes of a pass over `B` rows of `N` tokens: `fixed + token B N + pair B N^2`."""

    fixed: float
    token: float
    pair: float = 0.0

    def bytes(self, rows: int, width: float, seen: float | None = None) -> int:
        """Of so many rows, of which each token is held against `seen` others (None: those of its row)."""
        return int(self.fixed + rows * width * (self.token + self.pair * (width if seen is None else seen)))

    @staticmethod
    def of(one: int, two: int, long: int) -> "Footprint":
        """From what one row of _TOKENS tokens takes, two of them, and one of three times as many."""
        row = two - one
        pair = max(0.0, (long - one - 2 * row) / (6 * _TOKENS**2))
        return Footprint(one - row, row / _TOKENS - pair * _TOKENS, pair)


@dataclass(frozen=True)
class Footprints:
    """What the passes of a run take.

    Attributes:
        kept: by autograd when a training pass has gone forward.
        trained: the most that a training pass holds.
        scored: the most that a pass without gradients holds.
        cached_token: bytes of the cache for each token of a row.
        cached_row: bytes of the cache for each row, however long (recurrent states).
    """

    kept: Footprint
    trained: Footprint
    scored: Footprint
    cached_token: int
    cached_row: int


def footprints(language_model: LanguageModel, training: Callable[[], object]) -> Footprints:
    """What passes take; the student, with its untrained LoRA, is as it was afterwards.

    Args:
        language_model: with the LoRA that is trained.
        training: called before training passes are tried, for instance to checkpoint the blocks.
    """
    with torch.no_grad():
        short, longer = _cached(language_model, 2), _cached(language_model, 4)
    token = (longer - short) // 2
    cache = token, short - 2 * token
    if language_model.device.type != "cuda":
        return Footprints(*_counted(language_model), *cache)
    shapes = ((1, _TOKENS), (2, _TOKENS), (1, 3 * _TOKENS))
    with torch.no_grad():
        scored = [_on_gpu(language_model, *shape)[1] for shape in shapes]
    training()
    trained = [_on_gpu(language_model, *shape) for shape in shapes]
    language_model.model.zero_grad(set_to_none=True)
    kept, most = (Footprint.of(*column) for column in zip(*trained, strict=True))
    return Footprints(kept, most, Footprint.of(*scored), *cache)


def _cached(language_model: LanguageModel, tokens: int) -> int:
    rows = CachedRows(language_model, 1)
    rows.read(torch.full((1, tokens), language_model.pad_id, device=language_model.device))
    return rows.bytes


def _on_gpu(language_model: LanguageModel, rows: int, width: int) -> tuple[int, int]:
    """Bytes that a pass keeps when it has gone forward, and the most that it holds, going backward included."""
    device = language_model.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    h_BND = _forward(language_model, _packed(language_model, rows, width))
    kept = torch.cuda.memory_allocated(device) - before
    if h_BND.requires_grad:
        h_BND.float().sum().backward()
    return kept, torch.cuda.max_memory_allocated(device) - before


def _counted(language_model: LanguageModel) -> tuple[Footprint, Footprint, Footprint]:
    """The same on a CPU, where no allocator keeps count: by what one pass keeps for going backward."""
    held: dict[int, int] = {}
    own = _storages(language_model.model)

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = storage.nbytes()
        return tensor

    with ExitStack() as stack:
        for block in language_model.blocks:  # a spread one has its weights only while it runs
            hook = block.register_forward_pre_hook(lambda block, inputs: own.update(_storages(block)))
            stack.callback(hook.remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor))
        h_BND = _forward(language_model, _packed(language_model, 1, _TOKENS))
    kept = (sum(held.values()) + h_BND.nbytes) / _TOKENS
    for_a_moment = _TEMPORARY * kept / len(language_model.blocks)
    gathered = 0 if language_model.spread is None else language_model.spread.gathered
    return Footprint(0, kept), Footprint(gathered, kept + for_a_moment), Footprint(gathered, for_a_moment)


def _storages(module: nn.Module) -> set[int]:
    """What its weights lie in."""
    return {weight.untyped_storage()._cdata for weight in module.parameters()}


def _forward(language_model: LanguageModel, packed: Packed) -> Tensor:
    inputs = packed.inputs(language_model.model.dtype)
    h_BND: Tensor = language_model.decoder(**inputs, use_cache=False).last_hidden_state
    return h_BND


def _packed(language_model: LanguageModel, rows: int, width: int) -> Packed:
    """`rows` prefix trees of `width` nodes, or rows of as many tokens where the model does not share."""
    width = min(width, language_model.context)
    if width > language_model.longest_shared:
        trees, ids = [[index] for index in range(rows)], [[language_model.pad_id] * width]
    else:
        end = width // 4  # tokens of each of a tree's two rows that are its own
        trees = [[2 * index, 2 * index + 1] for index in range(rows)]
        ids = [[0] * (width - 2 * end) + [token] * end for token in (1, 2)]
    return pack(ids * rows, trees, language_model.pad_id, language_model.device)
