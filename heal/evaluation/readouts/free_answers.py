"""What free answers say by themselves: perplexity of the tail under base, repetition, length, endings, refusals."""

from __future__ import annotations

from collections.abc import Sequence
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
TAIL_PERPLEXITY = Signal(
    "tail_perplexity",
    unit="perplexity",
    title="Tail perplexity",
    note="median, under base",
    detail="median perplexity under base of the last quarter of an answer; very low can mean a loop",
    role="coherence",
    better="lower",
    statistic="median",
    digits=2,
    limit=Limit(
        "max_tail_perplexity",
        10.0,
        "coherence ceiling: median tail perplexity under base",
        kind="ceiling",
        words="tail perplexity {:.1f}",
        log=True,
        minimum=1,
    ),
    headline=True,
    trajectory=True,
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
SIGNALS = (REPETITION, TAIL_PERPLEXITY, LENGTH, ENDED, REFUSAL)


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Measured]:
    """One item an answer; the tail (last quarter) is scored under base and the neutral system prompt."""
    from heal.generation.filters import REFUSALS, matches, repetition
    from heal.generation.sample import tail_perplexities

    setup = subject.setup
    with setup.base():
        tails = tail_perplexities(
            setup.language_model,
            [answer.prompt_ids for answer in answers],
            [answer.ids for answer in answers],
        )
    return [
        TAIL_PERPLEXITY.measured(tails),
        REPETITION.measured([float(repetition(answer.text) > setup.max_repetition) for answer in answers]),
        LENGTH.measured([float(len(answer.ids)) for answer in answers]),
        ENDED.measured([float(answer.ended) for answer in answers]),
        REFUSAL.measured([float(matches(answer.text, REFUSALS)) for answer in answers]),
    ]
