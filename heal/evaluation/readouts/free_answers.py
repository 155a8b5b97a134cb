"""What free answers say by themselves: repetition, length, endings, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from heal.evaluation.signal import Limit, Measured, Signal

if TYPE_CHECKING:
    from heal.evaluation.results import Answer
    from heal.evaluation.subject import Subject

REPETITION = Signal(
    "repetition_share",
    unit="share",
    title="Looping",
    note="fraction of answers",
    detail="fraction of answers whose most repeated word or n-gram makes up more than {recipe.filter.max_repetition:g} "
    "of them",
    role="coherence",
    better="lower",
    digits=2,
    limit=Limit(
        "max_repetition_share",
        0.25,
        "coherence ceiling: fraction of looping answers",
        kind="ceiling",
        words="looping answers {:.0%}",
        minimum=0,
        maximum=1,
    ),
    headline=True,
    order=2,
)
LENGTH = Signal(
    "answer_tokens",
    unit="tokens",
    title="Answer length",
    note="tokens",
    detail="mean number of tokens of an answer, of at most {recipe.evaluation.tokens}",
    role="off_target",
    digits=1,
    order=2,
)
ENDED = Signal(
    "ended_share",
    unit="share",
    title="Ended by itself",
    note="fraction of answers",
    detail="fraction of answers that ended within {recipe.evaluation.tokens} tokens",
    role="off_target",
    digits=2,
    order=2,
)
REFUSAL = Signal(
    "refusal_share",
    unit="share",
    title="Refusing",
    note="fraction of answers",
    detail="fraction of answers that refuse, or speak of themselves as an AI",
    role="off_target",
    digits=2,
    order=2,
)
SIGNALS = (REPETITION, LENGTH, ENDED, REFUSAL)


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Measured]:
    """One item an answer; of one that never came, because its thought was not closed, only that it did not end."""
    from heal.generation.filters import matches, repetition
    from heal.generation.refusals import REFUSALS

    loops = subject.setup.max_repetition

    def each(value: Callable[[Answer], float]) -> list[float]:
        return [math.nan if answer.unclosed else float(value(answer)) for answer in answers]

    return [
        REPETITION.measured(each(lambda answer: repetition(answer.text) > loops)),
        LENGTH.measured(each(lambda answer: len(answer.ids))),
        ENDED.measured([float(answer.ended) for answer in answers]),
        REFUSAL.measured(each(lambda answer: matches(answer.text, REFUSALS))),
    ]
