"""Cache layers of a fixed size, whose next position is a number on the device: what a recorded step has to write to.

A recorded step reads and writes the same memory each time (heal/models/recorded.py), so that nothing in it may grow. A
layer here has room for all tokens to come; positions that are not written yet come after the query, where no mask lets
it look. A sliding window keeps all its positions, too, and is left to the mask.

Shape suffixes: B rows, H heads, C positions that there is room for, D head size; `_1` a single number.
"""

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from heal.models.growing import GrowingLayer, GrowingWindow


class FixedLayer(CacheLayerMixin):
    """A layer that goes on from a `GrowingLayer` or a `GrowingWindow`, one token at a time."""

    is_compileable = True  # transformers then builds its masks without a look at what is on the device

    def __init__(self, layer: GrowingLayer | GrowingWindow, more: int, next_1: Tensor):
        """Takes over a layer's keys and values, with room for `more` tokens; `next_1`: the position written next."""
        super().__init__()
        self.is_sliding = layer.is_sliding
        self.next_1 = next_1
        self.keys, self.values = (_roomy(kept, layer.get_seq_length(), more) for kept in (layer.keys, layer.values))
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """It has its memory from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Writes one token's keys and values; all of them, `[B, H, C, D]`."""
        self.keys.index_copy_(2, self.next_1, key_states)
        self.values.index_copy_(2, self.next_1, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_max_length(), 0

    def get_seq_length(self) -> Tensor:
        return self.next_1

    def get_max_length(self) -> int:
        return int(self.keys.shape[-2])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.keys, self.values = self.keys[beam_idx], self.values[beam_idx]


def fixed(cache: Cache, more: int) -> tuple[Cache, Tensor] | None:
    """The cache with room for `more` tokens that stays where it is, and the number that says where the next one goes.

    The cache given is empty then. None, and it is as it was, where a layer keeps something else than keys and values by
    position (a recurrent state).
    """
    if any(type(layer) not in (GrowingLayer, GrowingWindow) for layer in cache.layers):
        return None
    first = cache.layers[0]
    next_1 = first.keys.new_tensor([first.get_seq_length()], dtype=int)
    layers = []
    while cache.layers:  # one by one, so that not all of it is there twice
        layers.append(FixedLayer(cache.layers.pop(0), more, next_1))
    return Cache(layers=layers), next_1


def _roomy(kept_BHTD: Tensor, end: int, more: int) -> Tensor:
    """`[B, H, end + more, D]` with what was kept before position `end`; what is not kept or not written yet is 0."""
    rows, heads, kept, size = kept_BHTD.shape
    room_BHCD = kept_BHTD.new_zeros(rows, heads, end + more, size)
    room_BHCD[:, :, end - kept : end] = kept_BHTD
    return room_BHCD
