"""Pre-tokenised training rows from kept completions, and the batches they are trained in."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NotRequired, TypedDict, TypeVar, cast

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler

from heal.generation.collect import Completion
from heal.models.batching import Batching
from heal.models.language_model import LanguageModel
from heal.models.packing import pack
from heal.parallel import shares
from heal.randomness import derive_seed, shuffled

T = TypeVar("T")

_SORTED_TOGETHER = 16  # prompts among which the shorter come first


@dataclass(frozen=True)
class TrainingRow:
    """One completion as it is trained on.

    Attributes:
        input_ids: the prompt and the sampled ids, verbatim.
        start: where the completion begins.
        key: what it is known by: a hash of both.
    """

    input_ids: list[int]
    start: int
    key: int

    @property
    def prompt(self) -> list[int]:
        return self.input_ids[: self.start]

    @property
    def completion(self) -> list[int]:
        return self.input_ids[self.start :]


class Batch(TypedDict):
    """Completions collated as prefix trees (heal/models/packing.py): a plain dictionary, as HF's Trainer takes it.

    B rows, T positions, N completion tokens, C completions.
    """

    input_ids: Tensor  # [B, T]
    state: Tensor  # [N], where in the flattened hidden states each completion token is predicted
    labels: Tensor  # [N], that token
    line: Tensor  # [N], its completion's place in the batch
    key: Tensor  # [C], what each completion is known by
    position_ids: NotRequired[Tensor]  # where completions share a row
    end: NotRequired[Tensor]  # there, what `tree_mask` makes the mask from, on the device


def on(device: torch.device, batch: Batch) -> Batch:
    """The batch with its tensors on a device."""
    moved = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
    return cast(Batch, moved)


@dataclass(frozen=True)
class Split:
    """Indices into the kept completions: trained on, and held out for the validation curve."""

    train: list[int]
    validation: list[int]


def split(count: int, share: float, *seed: int | str) -> Split:
    """A random split; both parts keep the order of the completions. Nothing is held out when share is 0."""
    held_out = set(shuffled(list(range(count)), *seed)[: round(share * count)])
    return Split([i for i in range(count) if i not in held_out], sorted(held_out))


def training_rows(language_model: LanguageModel, completions: Sequence[Completion]) -> list[TrainingRow]:
    """The completions as they are trained on.

    Raises:
        ValueError: a completion is empty, too long for the model, or ended without its
            end-of-turn token: the student would never learn to stop.
    """
    rows = []
    for completion in completions:
        ids = [*completion.prompt_ids, *completion.ids]
        if not completion.ids:
            raise ValueError(f"completion {completion.index} is empty")
        if len(ids) > language_model.context:
            raise ValueError(
                f"completion {completion.index} has {len(ids)} tokens, over the context of {language_model.context}"
            )
        if completion.ended and completion.ids[-1] not in language_model.end_ids:
            raise ValueError(f"completion {completion.index} ended, but its last token is not an end of turn")
        start = len(completion.prompt_ids)
        rows.append(TrainingRow(ids, start, derive_seed(start, *ids)))
    return rows


def dataset(rows: Sequence[TrainingRow]) -> Dataset:
    """The rows as HF's Trainer takes them; `StepCollator` takes them back."""
    return Dataset.from_list([asdict(row) for row in rows])


def steps_of(rows: Sequence[TrainingRow], members: Sequence[int], size: int, *seed: int | str) -> list[list[int]]:
    """The completions of each optimiser step: those of one prompt together, and prompts of like length.

    The steps' order changes from epoch to epoch, what stands in them does not: the reference's hidden
    states are computed batch by batch, in the very passes that the training makes.

    Args:
        rows: as `training_rows` makes them.
        members: the rows that are used.
        size: completions of a step; the last one may be smaller.
        seed: what the order of the prompts is derived from.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in members:
        groups.setdefault(tuple(rows[row].prompt), []).append(row)
    order = shuffled(list(groups.values()), *seed)
    ordered: list[int] = []
    for first in range(0, len(order), _SORTED_TOGETHER):
        part = order[first : first + _SORTED_TOGETHER]
        part.sort(key=lambda group: max(len(rows[row].input_ids) for row in group))
        ordered += [row for group in part for row in group]
    return cut(ordered, size)


def cut(items: list[T], size: int) -> list[list[T]]:
    """Pieces of `size`, the last one smaller if need be."""
    return [items[first : first + size] for first in range(0, len(items), size)]


class StepOrder(Sampler[int]):
    """Completion positions of one epoch after the other: whole steps in a new order, a smaller last one last."""

    def __init__(self, count: int, size: int, *seed: int | str):
        """For `count` rows that stand step by step, `size` rows a step."""
        self._count = count
        self._steps = cut(list(range(count)), size)
        self._seed = seed
        self._epoch = 0

    def __iter__(self) -> Iterator[int]:
        full = [step for step in self._steps if len(step) == len(self._steps[0])]
        order = [*shuffled(full, *self._seed, self._epoch), *self._steps[len(full) :]]
        self._epoch += 1
        return (position for step in order for position in step)

    def __len__(self) -> int:
        return self._count

    def epochs(self, steps: int, batch_size: int) -> float:
        """Passes over the rows that so many steps are, counted in batches of one process."""
        epoch, done = divmod(steps - 1, len(self._steps))
        batches = [-(-len(step) // batch_size) for step in self._steps]
        return epoch + sum(batches[: done + 1]) / sum(batches)


@dataclass(frozen=True)
class Collator:
    """Makes batches of a model's training rows."""

    language_model: LanguageModel

    def __call__(self, rows: Sequence[TrainingRow]) -> Batch:
        """The rows as one batch, on the CPU."""
        model = self.language_model
        # The last token predicts nothing that is trained.
        ids = [row.input_ids[:-1] for row in rows]
        trees = model.trees(ids)
        packed = pack(ids, trees, model.pad_id, torch.device("cpu"))
        ordered = [rows[index] for tree in trees for index in tree]
        states = [nodes[row.start - 1 :] for nodes, row in zip(packed.nodes, ordered, strict=True)]
        batch = Batch(
            input_ids=packed.ids_BN,
            state=torch.cat(states),
            labels=torch.tensor([token for row in ordered for token in row.completion]),
            line=torch.cat([torch.full((len(state),), line) for line, state in enumerate(states)]),
            key=torch.tensor([row.key for row in ordered]),
        )
        if packed.position_BN is not None and packed.end_BN is not None:
            batch |= {"position_ids": packed.position_BN, "end": packed.end_BN}
        return batch


@dataclass(frozen=True)
class SharedStep:
    """One optimiser step as a process computes it.

    Attributes:
        parts: its share of the step's completions, those of each of its passes; none where it has no share.
        tokens, completions: of the whole step, which the terms of the loss are means over.
        passes: of all processes; what falls on a pass alike is divided by it.
    """

    parts: list[list[TrainingRow]]
    tokens: int
    completions: int
    passes: float

    def halved(self) -> "SharedStep":
        """The same share in more passes, each of half as many completions, which bear as much as those before."""
        size = max(map(len, self.parts))
        parts = cut([row for part in self.parts for row in part], size // 2)
        return replace(self, parts=parts, passes=self.passes * len(parts) / len(self.parts))


@dataclass(frozen=True)
class StepCollator:
    """Makes this process's part of optimiser steps.

    Attributes:
        batching: says how many completions go through the model in a pass.
        batch_size: so many where it does not.
        process, processes: which of how many this is.
    """

    batching: Batching
    batch_size: int
    process: int = 0
    processes: int = 1

    @property
    def size(self) -> int:
        """Completions of a pass."""
        return self.batching.completions or self.batch_size

    def passes(self, step: Sequence[TrainingRow]) -> list[list[TrainingRow]]:
        """The rows of each of this process's passes over a step; a row is in the same one while the size stays."""
        return cut([step[row] for row in shares(len(step), self.processes)[self.process]], self.size)

    def __call__(self, items: Sequence[dict[str, Any]]) -> SharedStep:
        """Takes a step's items of a `dataset`, to which trl adds columns of its own."""
        step = [TrainingRow(item["input_ids"], item["start"], item["key"]) for item in items]
        return SharedStep(
            self.passes(step),
            tokens=sum(len(row.completion) for row in step),
            completions=len(step),
            passes=sum(-(-len(part) // self.size) for part in shares(len(step), self.processes)),
        )
