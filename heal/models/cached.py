"""Rows read over one cache, token by token: what decoding does in a model, and what is tried when one is loaded.

Shape suffixes: B rows, T positions, D hidden size.
"""

import torch
from torch import Tensor
from transformers import Cache

from heal.models.architectures import empty_cache
from heal.models.fixed import fixed
from heal.models.growing import growing
from heal.models.language_model import LanguageModel

_ALIGNED = 8  # positions; attention kernels would pad a mask of any other width in each step


class CachedRows:
    """Rows side by side, padded on the left.

    Attributes:
        mask_BT: what has been read so far: 1 for a token, 0 for padding.
    """

    def __init__(self, language_model: LanguageModel, count: int):
        self._language_model = language_model
        self._cache: Cache = growing(empty_cache(language_model.model))
        self._next_1: Tensor | None = None  # once fixed: the position that is written next,
        self._place_B1: Tensor | None = None  # and its number among each row's tokens
        self.mask_BT = torch.zeros(count, 0, dtype=torch.long, device=language_model.device)

    def fix(self, more: int) -> bool:
        """From now on reads one token at a time, at most `more`, into memory that stays where it is.

        Masks, positions and places are then numbers on the device, and reading depends on nothing else. False, and
        nothing changes, where the model keeps other states than keys and values.
        """
        more += -(self.mask_BT.shape[1] + more) % _ALIGNED
        made = fixed(self._cache, more)
        if made is None:
            return False
        self._cache, self._next_1 = made
        self._place_B1 = self.mask_BT.sum(-1, keepdim=True)
        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_zeros(len(self.mask_BT), more)], dim=1)
        return True

    def read(self, ids_BT: Tensor, real_BT: Tensor | None = None) -> Tensor:
        """Reads on; the final hidden states at the last position, `[B, D]`.

        Args:
            ids_BT: token ids, as many for each row.
            real_BT: 1 for a token, 0 for padding; None: no padding.
        """
        if self._next_1 is not None and self._place_B1 is not None:
            self.mask_BT.index_fill_(1, self._next_1, 1)
            h_BD = self._states(ids_BT, self._place_B1)
            self._next_1.add_(1)
            self._place_B1.add_(1)
            return h_BD
        self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(ids_BT) if real_BT is None else real_BT], dim=1)
        position_BT = (self.mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        return self._states(ids_BT, position_BT)

    def _states(self, ids_BT: Tensor, position_BT: Tensor) -> Tensor:
        return self._language_model.decoder(
            input_ids=ids_BT,
            attention_mask=self.mask_BT,
            position_ids=position_BT,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

    @property
    def is_fixed(self) -> bool:
        """Whether it has been fixed."""
        return self._next_1 is not None

    @property
    def bytes(self) -> int:
        """Of what the cache holds: keys and values, and the states of recurrent layers."""
        fields = [field for layer in self._cache.layers for field in vars(layer).values()]
        states = [state for field in fields if isinstance(field, dict) for state in field.values()]
        return sum(value.nbytes for value in (*fields, *states) if isinstance(value, Tensor))

    def select(self, index_B: Tensor) -> None:
        """Takes these rows, in this order; one may be taken more than once."""
        self._cache.reorder_cache(index_B)  # every kind of layer has it, recurrent ones too
        self.mask_BT = self.mask_BT[index_B]
        if self._place_B1 is not None:
            self._place_B1 = self._place_B1[index_B]


def padded(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows `[B, T]` padded on the left, and where their tokens are (1, padding 0)."""
    width = max(map(len, rows))
    ids_BT = [[pad_id] * (width - len(row)) + row for row in rows]
    real_BT = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids_BT, device=device), torch.tensor(real_BT, device=device)
