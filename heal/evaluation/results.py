"""What a stage measured, item by item, and its estimates against base: numbers alone, no model."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heal.evaluation.metrics import SignalFigures, Summary
from heal.evaluation.signal import Measured, known
from heal.evaluation.stats import estimate, paired_difference, point
from heal.records import read_record, record_bytes
from heal.run.files import Files

OUTPUTS = "outputs.jsonl"
Rows = list[dict[str, Any]]  # of a table for people, whose columns are those of the signals that there are


@dataclass(frozen=True)
class Answer:
    """A greedy answer to a held-out prompt.

    Attributes:
        prompt: the user message.
        prompt_ids: those of the neutral prompt, with the thought if there is one.
        ids, text: of the answer.
        ended: whether it ended within its token budget.
        thought: ids of what was thought first; none: the model was not to think.
        unclosed: whether there is no answer, because the thought was not closed within its budget.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    ended: bool
    thought: tuple[int, ...] = ()
    unclosed: bool = False


@dataclass(frozen=True)
class StageResult:
    """Answers and signals of one stage."""

    stage: str
    answers: tuple[Answer, ...]
    signals: tuple[Measured, ...]

    def files(self) -> Files:
        return {f"{self.stage}.json": record_bytes(self)}

    @staticmethod
    def load(folder: Path, stage: str) -> "StageResult":
        """What `files` wrote; UserError where the file is none."""
        return read_record(StageResult, folder / f"{stage}.json")

    def signal(self, name: str) -> Measured:
        """KeyError where the stage has no such signal."""
        return {signal.name: signal for signal in self.signals}[name]

    def has(self, name: str) -> bool:
        """Whether the signal was measured."""
        return any(signal.name == name for signal in self.signals)

    def mean(self, name: str) -> float:
        """The mean of a signal's items that are numbers; NaN without any."""
        values = [value for value in self.signal(name).values if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan

    def mass(self, name: str) -> float:
        """The mean of a signal of mass on the options; 1 where the way of asking has no slot and so no mass."""
        return self.mean(name) if self.has(name) else 1.0


def summarise(result: StageResult, base: StageResult, resamples: int, seed: int) -> Summary:
    """Estimates of every signal and of its difference to base; one that either of the two lacks is left out.

    Args:
        result: the stage.
        base: of the same items.
        resamples, seed: of the bootstrap; the seed makes the intervals repeatable.
    """
    of_base = {signal.name: signal for signal in base.signals}
    return {
        signal.name: _figures(signal, of_base[signal.name], resamples, seed)
        for signal in result.signals
        if signal.name in of_base
    }


def headline(result: StageResult) -> str:
    """A stage in one line of the console: the trait, and every signal with a limit."""
    return ", ".join(
        f"{signal.name} {point(result.signal(signal.name).values, signal.statistic):.{signal.digits}f}"
        for signal in known(measured.name for measured in result.signals)
        if signal.role == "trait" or signal.limit is not None
    )


def _figures(signal: Measured, base: Measured, resamples: int, seed: int) -> SignalFigures:
    value = estimate(signal.values, signal.statistic, resamples, seed)
    ours, theirs = signal.values, base.values
    if signal.items == "questions":  # an earlier version read the mass off all of them, later ones off the first
        count = min(len(ours), len(theirs))
        ours, theirs = ours[:count], theirs[:count]
    delta = paired_difference(ours, theirs, signal.statistic, resamples, seed)
    return SignalFigures(value.value, value.low, value.high, value.n, delta, signal.role, signal.unit)


def output_rows(result: StageResult) -> Rows:
    """One row an answer for `outputs.jsonl`, with the signals that have one value an answer."""
    per_answer = [signal for signal in result.signals if signal.items == "answers"]
    return [
        {"stage": result.stage, "prompt": answer.prompt, "text": answer.text, "ended": answer.ended}
        | {signal.name: signal.values[index] for signal in per_answer}
        for index, answer in enumerate(result.answers)
    ]
