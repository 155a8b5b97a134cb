"""Persona log-ratio: how much more probable base finds an answer under the positive persona.

`plr = (1/n) sum_t [log p_base(y_t | positive, x, y_<t) - log p_base(y_t | negative, x, y_<t)]`,
nats per token; higher is more of the trait. METRICS: persona log-ratio.
"""

import math
from collections.abc import Sequence

from heal.evaluation.results import Answer, Signal
from heal.evaluation.subject import Subject
from heal.scoring import completion_states, token_logprobs


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Signal]:
    """The signal `persona_log_ratio`; NaN for an answer without tokens."""
    said = [answer for answer in answers if answer.ids]
    ids = [answer.ids for answer in said]
    chat, trait = subject.language_model.chat, subject.trait
    prompts = [chat.ids(persona, answer.prompt) for persona in (trait.positive, trait.negative) for answer in said]
    with subject.base():
        states = completion_states(subject.language_model, prompts, ids * 2)
        logprobs = token_logprobs(subject.language_model, states, ids * 2)
    means = [float(logprob_N.double().mean()) for logprob_N in logprobs]
    scores = iter(
        positive - negative for positive, negative in zip(means[: len(said)], means[len(said) :], strict=True)
    )
    values = tuple(next(scores) if answer.ids else math.nan for answer in answers)
    return [Signal("persona_log_ratio", "nats/token", "trait", "mean", values)]
