"""Coherence of free answers: perplexity of the tail under base, and repetition."""

from collections.abc import Sequence

from heal.evaluation.results import Answer, Signal
from heal.evaluation.subject import Subject
from heal.generation.filters import REFUSALS, matches, repetition
from heal.generation.make import tail_perplexities


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Signal]:
    """What an answer's text says: one item an answer.

    `tail_perplexity` (last quarter, under base, neutral prompt) and `repetition_share` (1: the answer loops) are
    of coherence; `answer_tokens`, `ended_share` (1: it ended by itself) and `refusal_share` are side effects.
    """
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
        Signal("answer_tokens", "tokens", "off_target", "mean", tuple(float(len(a.ids)) for a in answers)),
        Signal("ended_share", "share", "off_target", "mean", tuple(float(a.ended) for a in answers)),
        Signal(
            "refusal_share", "share", "off_target", "mean", tuple(float(matches(a.text, REFUSALS)) for a in answers)
        ),
    ]
