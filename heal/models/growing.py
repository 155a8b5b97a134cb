"""Cache layers that grow in place: a step of decoding writes its own keys and values and copies no others.

Shape suffixes: B rows, H heads, T positions, D head size.
"""

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_SPARE = 64  # positions that a buffer has room for beyond what it was made for


class _Buffer:
    """The tensor whose last part a cache layer's keys (or values) are."""

    def __init__(self) -> None:
        self._room_BHTD: Tensor | None = None
        self._end = 0  # positions written

    def append(self, past_BHTD: Tensor, new_BHTD: Tensor) -> Tensor:
        """`cat([past, new], dim=-2)`, `past` being what was returned before, or the end of it; else it is copied."""
        past, new = past_BHTD.shape[-2] if past_BHTD.numel() else 0, new_BHTD.shape[-2]
        room_BHTD = self._room_BHTD
        if room_BHTD is None or not self._ends_with(past_BHTD, past) or self._end + new > room_BHTD.shape[-2]:
            rows, heads, _, size = new_BHTD.shape
            room_BHTD = new_BHTD.new_empty(rows, heads, past + new + _SPARE, size)
            if past:
                room_BHTD[:, :, :past] = past_BHTD
            self._room_BHTD, self._end = room_BHTD, past
        room_BHTD[:, :, self._end : self._end + new] = new_BHTD
        self._end += new
        return room_BHTD[:, :, self._end - past - new : self._end]

    def _ends_with(self, past_BHTD: Tensor, past: int) -> bool:
        """Whether `past` is this buffer's last written part itself: not rows selected from it, not cropped."""
        room_BHTD = self._room_BHTD
        assert room_BHTD is not None
        return (
            past_BHTD.shape[0] == room_BHTD.shape[0]
            and past <= self._end
            and past_BHTD.data_ptr() == room_BHTD[:, :, self._end - past :].data_ptr()
        )


class _InPlace:
    """A cache layer's keys and values, each the last part of a buffer of its own."""

    keys: Tensor
    values: Tensor

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._buffers = _Buffer(), _Buffer()

    def _appended(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:  # type: ignore[attr-defined]  # by transformers' layer
            self.lazy_initialization(key_states, value_states)  # type: ignore[attr-defined]
        keys, values = self._buffers
        return keys.append(self.keys, key_states), values.append(self.values, value_states)


class GrowingLayer(_InPlace, DynamicLayer):
    """A `DynamicLayer` without its concatenation."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self._appended(key_states, value_states)
        return self.keys, self.values


class GrowingWindow(_InPlace, DynamicSlidingWindowLayer):
    """A `DynamicSlidingWindowLayer` without its concatenation; it keeps no past beyond the window."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        keys, values = self._appended(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        kept = slice(max(0, keys.shape[-2] - self.sliding_window + 1), None)
        self.keys, self.values = keys[:, :, kept], values[:, :, kept]
        return keys, values


def growing(cache: DynamicCache) -> DynamicCache:
    """The same empty cache with attention layers that grow in place; layers of other kinds stay as they are."""
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = GrowingLayer()
        elif type(layer) is DynamicSlidingWindowLayer:
            cache.layers[index] = GrowingWindow(layer.sliding_window)
    return cache
