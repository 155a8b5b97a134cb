"""Pre-tokenised training rows from kept completions, and the batches they are trained in."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heal.generation.collect import Row
from heal.models.language_model import LanguageModel, right_padded
from heal.randomness import shuffled

IGNORED = -100


@dataclass(frozen=True)
class Split:
    """Indices into the kept completions: trained on, and held out for the validation curve."""

    train: list[int]
    validation: list[int]


def split(count: int, share: float, *seed: int | str) -> Split:
    """A random split; both parts keep the order of the completions. Nothing is held out when share is 0."""
    held_out = set(shuffled(list(range(count)), *seed)[: round(share * count)])
    return Split([i for i in range(count) if i not in held_out], sorted(held_out))


def training_rows(language_model: LanguageModel, rows: Sequence[Row]) -> list[dict]:
    """`input_ids`, `labels` (prompt ignored, sampled ids verbatim) and the completion's number.

    Raises:
        ValueError: a completion is empty, too long for the model, or ended without its
            end-of-turn token: the student would never learn to stop.
    """
    made = []
    for number, row in enumerate(rows):
        ids = [*row.prompt_ids, *row.ids]
        if not row.ids:
            raise ValueError(f"completion {row.index} is empty")
        if len(ids) > language_model.context:
            raise ValueError(
                f"completion {row.index} has {len(ids)} tokens, over the context of {language_model.context}"
            )
        if row.ended and row.ids[-1] not in language_model.end_ids:
            raise ValueError(f"completion {row.index} ended, but its last token is not an end of turn")
        labels = [IGNORED] * len(row.prompt_ids) + list(row.ids)
        made.append({"input_ids": ids, "labels": labels, "completion": number})
    return made


@dataclass
class Collator:
    """Right-padded batches: `input_ids` and `labels` `[B, T]`, `completion` `[B]`; no mask is needed."""

    pad_id: int

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        cpu = torch.device("cpu")
        return {
            "input_ids": right_padded([row["input_ids"] for row in rows], self.pad_id, cpu),
            "labels": right_padded([row["labels"] for row in rows], IGNORED, cpu),
            "completion": torch.tensor([row["completion"] for row in rows]),
        }
