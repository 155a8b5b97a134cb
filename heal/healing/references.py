"""The reference's final hidden states, computed once a round and kept until its training is over."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from heal.healing.rows import Batch
from heal.models.language_model import LanguageModel
from heal.models.packing import tree_mask
from heal.run.files import named

FILE = "references.bin"
CHUNK = 2**24  # bytes that are written at once


class References:
    """Final hidden states `[N_i, D]` of each completion under the reference, found by the completion's key.

    They lie in memory where they fit the budget, else in a memory-mapped file.

    Attributes:
        on_disk: whether they lie in the file.
    """

    def __init__(self, lengths: Mapping[int, int], width: int, dtype: torch.dtype, budget: int, folder: Path):
        """Makes room.

        Args:
            lengths: tokens of each completion, by key.
            width: D.
            dtype: of the hidden states.
            budget: bytes that may lie in memory.
            folder: where the file goes if they do not fit.
        """
        total = sum(lengths.values())
        self.on_disk = total * width * dtype.itemsize > budget
        if self.on_disk:
            file = str(folder / FILE)
            reserve(folder / FILE, total * width * dtype.itemsize)
            self._states_ND = torch.from_file(file, shared=True, size=total * width, dtype=dtype).view(total, width)
        else:
            self._states_ND = torch.empty(total, width, dtype=dtype)
        self._slices: dict[int, slice] = {}
        start = 0
        for key, length in lengths.items():
            self._slices[key] = slice(start, start + length)
            start += length
        self._filled: set[int] = set()

    def put(self, keys: Tensor, states_ND: Tensor, line_N: Tensor) -> None:
        """Keeps a batch's states, `line_N` saying to which of `keys` each belongs."""
        for line, key in enumerate(keys.tolist()):
            self._states_ND[self._slices[key]] = states_ND[line_N == line].to(self._states_ND)
            self._filled.add(key)

    def get(self, keys: Tensor, line_N: Tensor) -> Tensor:
        """The states of a batch in the order of `line_N`, `[N, D]`, on its device.

        Raises:
            KeyError: a completion that no reference was computed for.
            ValueError: one of another length than the reference knows.
        """
        counts = torch.bincount(line_N, minlength=len(keys)).tolist()
        for key, count in zip(keys.tolist(), counts, strict=True):
            if key not in self._filled:
                raise KeyError(f"no reference was computed for completion {key}")
            if (known := self._slices[key].stop - self._slices[key].start) != count:
                raise ValueError(f"completion {key} has {count} tokens, its reference {known}")
        return torch.cat([self._states_ND[self._slices[key]] for key in keys.tolist()]).to(line_N.device)


def reserve(path: Path, size: int) -> None:
    """A file of `size` bytes that are really there: in a mapped file, a full disk would kill the process.

    Raises:
        OSError: there is no room; names the file.
    """
    with named(path), open(path, "wb") as file:
        for start in range(0, size, CHUNK):
            file.write(bytes(min(CHUNK, size - start)))
        file.flush()


@torch.no_grad()
def compute(
    references: References,
    language_model: LanguageModel,
    context: Callable[[], AbstractContextManager[None]],
    batches: Iterable[Batch],
) -> None:
    """Fills `references` with the states of collated `batches` under the gates of `context`."""
    with context():
        for batch in batches:
            states_ND = batch_states(language_model, batch)
            references.put(batch["key"], states_ND, batch["line"].to(states_ND.device))


def batch_states(language_model: LanguageModel, batch: Batch, decoder: Callable | None = None) -> Tensor:
    """The final hidden states that predict a collated batch's completion tokens, `[N, D]`.

    Args:
        language_model: the model as it stands.
        batch: as `Collator` makes it.
        decoder: a compiled decoder to use instead of the model's own.
    """
    device = language_model.device
    inputs = {"input_ids": batch["input_ids"].to(device)}
    if "position_ids" in batch:
        inputs["position_ids"] = batch["position_ids"].to(device)
    if "end" in batch:
        inputs["attention_mask"] = tree_mask(batch["end"].to(device), language_model.model.dtype)
    run = language_model.decoder if decoder is None else decoder
    h_BND = run(**inputs, use_cache=False).last_hidden_state
    return h_BND.flatten(0, 1)[batch["state"].to(h_BND.device)]
