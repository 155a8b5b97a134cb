"""Drift: how far healing has taken the student from base, measured in one way whatever the round was trained with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from heal.accumulator import Accumulator
from heal.evaluation.metrics import DriftFigures, PositionSpread, Spread
from heal.evaluation.results import Answer
from heal.generation.collect import Completion
from heal.models.language_model import LanguageModel
from heal.parallel import over_rows
from heal.progress import Progress
from heal.records import read_record, record_bytes
from heal.run.files import Files
from heal.run.step import Step
from heal.scoring import completion_states, token_divergences_both_ways

FIGURES = "drift.json"
POSITIONS = 8  # of a text that one figure of its drift by position speaks of
EVERY = 2  # completions and answers, of which one is scored: the two passes stay within 5 % of a round


@dataclass(frozen=True)
class Drifted:
    """What was measured."""

    figures: DriftFigures

    def files(self) -> Files:
        return {FIGURES: record_bytes(self.figures)}

    @staticmethod
    def load(folder: Path) -> "Drifted":
        return Drifted(read_record(DriftFigures, folder / FIGURES))


@dataclass(frozen=True)
class Drift(Step[Drifted]):
    """Both KL divergences between base and the student, per position of every other text, after the round is folded.

    Attributes:
        kept: the completions that the round was healed on.
        answers: those of the healed student to the held-out prompts.
    """

    language_model: LanguageModel
    accumulator: Accumulator
    kept: Sequence[Completion]
    answers: Sequence[Answer]

    name = "drift"
    load = staticmethod(Drifted.load)

    def compute(self, progress: Progress) -> Drifted:
        texts = {"completions": self._divergences(self.kept), "answers": self._divergences(self.answers)}
        spreads = {
            name: {divergence: spread(torch.cat(rows)) for divergence, rows in found.items()}
            for name, found in texts.items()
        }
        by_position = {name: along(found["kl_rev"]) for name, found in texts.items() if found}
        return Drifted(DriftFigures(**spreads, by_position=by_position))

    def _divergences(self, texts: Sequence[Completion] | Sequence[Answer]) -> dict[str, list[torch.Tensor]]:
        """Each divergence at the positions of every text that is scored; empty where no text has tokens."""
        scored = [text for text in texts if text.ids][::EVERY]
        if not scored:
            return {}

        def divergences(share: range) -> list[tuple[torch.Tensor, torch.Tensor]]:
            prompts, ids = [scored[text].prompt_ids for text in share], [scored[text].ids for text in share]
            with self.accumulator.student():
                student = completion_states(self.language_model, prompts, ids)
            with self.accumulator.base():
                base = completion_states(self.language_model, prompts, ids)
            return list(zip(*token_divergences_both_ways(self.language_model, student, base), strict=True))

        reverse, forward = zip(*over_rows(len(scored), divergences), strict=True)
        return {"kl_fwd": list(forward), "kl_rev": list(reverse)}

    def finding(self, artifact: Drifted) -> str:
        return artifact.figures.said


def spread(kl_N: torch.Tensor) -> Spread:
    """Of a divergence over positions, nats."""
    kl_N = kl_N.double()
    return Spread(
        float(kl_N.mean()),
        float(kl_N.square().mean().sqrt()),
        float(kl_N.quantile(0.95)),
        float(kl_N.max()),
        len(kl_N),
    )


def along(rows: Sequence[torch.Tensor]) -> tuple[PositionSpread, ...]:
    """Of a divergence at the positions of each text, nats: by stretches of POSITIONS, as far as any text goes."""
    found = []
    for start in range(0, max(map(len, rows)), POSITIONS):
        parts = [kl_N[start : start + POSITIONS] for kl_N in rows]
        here = spread(torch.cat(parts))
        last = start + max(map(len, parts))
        found.append(PositionSpread(start + 1, last, here.mean, here.p95, here.n))
    return tuple(found)
