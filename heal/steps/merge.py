"""Merge: in 16 bits, whether the student computes with merged weights, by what their rounding costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from heal.accumulator import Accumulator
from heal.generation.collect import Completion
from heal.memory import out_of_memory
from heal.models.language_model import LanguageModel
from heal.parallel import over_rows, rank, share, together
from heal.progress import Progress
from heal.records import read_record, record_bytes
from heal.run.files import Files
from heal.run.step import Step
from heal.scoring import completion_states, token_divergences

FILE = "merge.json"
_ROWS = 16  # completions on which the rounding is measured


@dataclass(frozen=True)
class Merged:
    """What rounding the merged weights costs: KL of the exact student to the rounded one, nats per token.

    Attributes:
        kl_mean, kl_p95: over completions that the student was healed on; None where the weights found no room.
        limit: of `kl_mean`.
    """

    kl_mean: float | None
    kl_p95: float | None
    limit: float

    @property
    def taken(self) -> bool:
        """Whether the student computes with merged weights."""
        return self.kl_mean is not None and self.kl_mean <= self.limit

    def files(self) -> Files:
        return {FILE: record_bytes(self)}

    @staticmethod
    def load(folder: Path) -> "Merged":
        """UserError where the file is not what `files` wrote."""
        return read_record(Merged, folder / FILE)


@dataclass(frozen=True)
class Merge(Step[Merged]):
    """Compares the folded student on its factors, which are exact, with the one on merged and rounded weights.

    Attributes:
        rows: the completions that the round was healed on.
        limit: the largest mean KL at which merged weights are taken, nats.
    """

    language_model: LanguageModel
    accumulator: Accumulator
    rows: Sequence[Completion]
    limit: float

    name = "merge"
    load = staticmethod(Merged.load)

    def compute(self, progress: Progress) -> Merged:
        rows = self.rows[:: max(1, len(self.rows) // _ROWS)][:_ROWS]

        def states(share: range) -> list[torch.Tensor]:
            prompts, completions = [rows[row].prompt_ids for row in share], [rows[row].ids for row in share]
            with self.accumulator.student():
                return completion_states(self.language_model, prompts, completions)

        exact = states(share(len(rows)))
        merged = together(self._merged)
        if not all(merged):
            if merged[rank()]:
                self.accumulator.merge(False)
            return Merged(None, None, self.limit)
        kls = over_rows(len(rows), lambda share: token_divergences(self.language_model, exact, states(share)))
        kl_N = torch.cat(kls).double()
        return Merged(float(kl_N.mean()), float(torch.quantile(kl_N, 0.95)), self.limit)

    def _merged(self) -> bool:
        """Merges; False where memory is short of that."""
        try:
            self.accumulator.merge()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return False
        return True

    def finding(self, artifact: Merged) -> str:
        if artifact.kl_mean is None:
            return "no room for merged weights: the history stays on its factors, which is slower"
        cost = f"rounding the merged weights costs {artifact.kl_mean:.4f} nats a token"
        if artifact.taken:
            return f"{cost} (at most {artifact.limit:g}): taken"
        return f"{cost}, more than compute.merge_limit={artifact.limit:g}: the history stays on its factors"
