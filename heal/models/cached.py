"""Rows read over one cache, token by token: what decoding does in a model, and what is tried when one is loaded.

Shape suffixes: B rows, T positions, D hidden size.
"""

import torch
from torch import Tensor

from heal.models.architectures import empty_cache
from heal.models.growing import growing
from heal.models.language_model import LanguageModel


class CachedRows:
    """Rows side by side, padded on the left.

    Attributes:
        mask_BT: what has been read so far: 1 for a token, 0 for padding.
    """

    def __init__(self, language_model: LanguageModel, count: int):
        self._language_model = language_model
        self._cache = growing(empty_cache(language_model.model))
        self.mask_BT = torch.zeros(count, 0, dtype=torch.long, device=language_model.device)

    def read(self, ids_BT: Tensor, real_BT: Tensor | None = None) -> Tensor:
        """Reads on; the final hidden states at the last position, `[B, D]`.

        Args:
            ids_BT: token ids, as many for each row.
            real_BT: 1 for a token, 0 for padding; None: no padding.
        """
        self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(ids_BT) if real_BT is None else real_BT], dim=1)
        position_BT = (self.mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        return self._language_model.decoder(
            input_ids=ids_BT,
            attention_mask=self.mask_BT,
            position_ids=position_BT,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

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


def padded(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows `[B, T]` padded on the left, and where their tokens are (1, padding 0)."""
    width = max(map(len, rows))
    ids_BT = [[pad_id] * (width - len(row)) + row for row in rows]
    real_BT = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids_BT, device=device), torch.tensor(real_BT, device=device)
