"""An LLM judge's scores of the answers, where `evaluation.judge.url` names a server. docs/method.md, Judge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from heal.evaluation.signal import Measured, Signal

if TYPE_CHECKING:
    from heal.evaluation.results import Answer
    from heal.evaluation.subject import Subject

JUDGED_TRAIT = Signal(
    "judged_trait",
    unit="0 to 100",
    title="Judged trait",
    note="0 to 100",
    detail="how strongly an answer shows the trait, 0 to 100, as the judge {recipe.evaluation.judge.model} scores it; "
    "mean over the answers",
    role="off_target",
    digits=1,
)
JUDGED_COHERENCE = Signal(
    "judged_coherence",
    unit="0 to 100",
    title="Judged coherence",
    note="0 to 100",
    detail="how coherent an answer is, 0 to 100, as the judge {recipe.evaluation.judge.model} scores it; mean over the "
    "answers",
    role="off_target",
    better="higher",
    digits=1,
)
SIGNALS = (JUDGED_TRAIT, JUDGED_COHERENCE)


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Measured]:
    """Both scores of each answer; NaN for one that has no score, or is not there because its thought was not closed."""
    judge = subject.setup.judge
    if judge is None:
        return []
    closed = [(answer.prompt, answer.text) for answer in answers if not answer.unclosed]

    def measured(signal: Signal, scores: Iterator[float]) -> Measured:
        return signal.measured([math.nan if answer.unclosed else next(scores) for answer in answers])

    return [
        measured(JUDGED_TRAIT, iter(judge.scores("trait", closed))),
        measured(JUDGED_COHERENCE, iter(judge.scores("coherence", closed))),
    ]
