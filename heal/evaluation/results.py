"""What a stage measured, item by item, and its estimates against base: numbers alone, no model."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from heal.evaluation.stats import Estimate, Statistic, estimate, paired_difference

Role = Literal["trait", "coherence", "off_target"]


@dataclass(frozen=True)
class Answer:
    """A greedy answer to a held-out prompt; `prompt_ids` are those of the neutral prompt."""

    prompt: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    ended: bool


@dataclass(frozen=True)
class Signal:
    """One measured quantity, item by item, in the same order at every stage.

    Attributes:
        name: its name in tables and logs.
        unit: of the values.
        role: what it says something about.
        statistic: how items are summarised.
        values: one per item; NaN where the item could not be scored.
        items: what the items are.
    """

    name: str
    unit: str
    role: Role
    statistic: Statistic
    values: tuple[float, ...]
    items: Literal["answers", "questions", "texts", "vignettes"] = "answers"


@dataclass(frozen=True)
class StageResult:
    """Answers and signals of one stage."""

    stage: str
    answers: tuple[Answer, ...]
    signals: tuple[Signal, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> "StageResult":
        return StageResult(
            content["stage"],
            tuple(
                Answer(**(row | {"prompt_ids": tuple(row["prompt_ids"]), "ids": tuple(row["ids"])}))
                for row in content["answers"]
            ),
            tuple(Signal(**(row | {"values": tuple(row["values"])})) for row in content["signals"]),
        )

    def signal(self, name: str) -> Signal:
        return next(signal for signal in self.signals if signal.name == name)

    def mean(self, name: str) -> float:
        """The mean of a signal's items that are numbers; NaN without any."""
        values = [value for value in self.signal(name).values if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class StageSummary:
    """Each signal with its interval, and its paired difference to base."""

    values: dict[str, Estimate]
    deltas: dict[str, Estimate]
    signals: tuple[Signal, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            signal.name: self.values[signal.name].to_json()
            | {"delta": self.deltas[signal.name].to_json(), "role": signal.role, "unit": signal.unit}
            for signal in self.signals
        }


def summarise(result: StageResult, base: StageResult, resamples: int, seed: int) -> StageSummary:
    """Estimates of every signal and of its difference to base; `seed` makes the intervals repeatable."""
    values, deltas = {}, {}
    for signal in result.signals:
        other = base.signal(signal.name)
        values[signal.name] = estimate(signal.values, signal.statistic, resamples, seed)
        deltas[signal.name] = paired_difference(signal.values, other.values, signal.statistic, resamples, seed)
    return StageSummary(values, deltas, result.signals)


def output_rows(result: StageResult) -> list[dict[str, Any]]:
    """One row an answer for `outputs.jsonl`, with the signals that have one value an answer."""
    per_answer = [signal for signal in result.signals if signal.items == "answers"]
    return [
        {"stage": result.stage, "prompt": answer.prompt, "text": answer.text, "ended": answer.ended}
        | {signal.name: signal.values[index] for signal in per_answer}
        for index, answer in enumerate(result.answers)
    ]
