"""Coherence of free answers: perplexity of the tail under base, and repetition."""

from collections.abc import Sequence

from heal.evaluation.subject import Answer, Signal, Subject
from heal.generation.filters import repetition
from heal.generation.make import tail_perplexities


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Signal]:
    """`tail_perplexity` (last quarter, under base, neutral prompt) and `repetition_share` (1: the answer loops)."""
    with subject.base():
        tails = tail_perplexities(
            subject.language_model,
            [answer.prompt_ids for answer in answers],
            [answer.ids for answer in answers],
        )
    loops = tuple(float(repetition(answer.text) > subject.max_repetition) for answer in answers)
    return [
        Signal("tail_perplexity", "perplexity", "coherence", "median", tuple(tails)),
        Signal("repetition_share", "share", "coherence", "mean", loops),
    ]
