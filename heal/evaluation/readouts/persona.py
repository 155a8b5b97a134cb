"""Persona log-ratio: how much more probable base finds an answer under the positive persona.

`plr = (1/n) sum_t [log p_base(y_t | positive, x, y_<t) - log p_base(y_t | negative, x, y_<t)]`,
nats per token; higher is more of the trait. Of several traits, each has its own, beside their mean answer by answer.
docs/method.md, Persona log-ratio and Several traits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from heal.evaluation.signal import TRAIT, Measured, PersonasApart, Signal

if TYPE_CHECKING:
    from heal.evaluation.results import Answer
    from heal.evaluation.subject import Setup, Subject
    from heal.trait import Trait

PERSONA = Signal(
    TRAIT,
    unit="nats/token",
    title="Trait",
    note="persona log-ratio, nats/token",
    detail="log p_base(token | positive persona) \N{MINUS SIGN} log p_base(token | negative persona), mean over the "
    "tokens of an answer of at most {recipe.evaluation.tokens} tokens, then over the answers; nats/token, higher is "
    "more of the trait",
    role="trait",
    better="higher",
    validity=PersonasApart(),
)
SIGNALS = (PERSONA,)


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Measured]:
    """The persona log-ratio of each answer; NaN for one without tokens."""
    setup = subject.setup
    if not setup.trait.parts:
        return [PERSONA.measured(_ratios(setup, setup.trait, answers))]
    return of_several({trait.name: _ratios(setup, trait, answers) for trait in setup.trait.parts})


def of_several(by_trait: Mapping[str, Sequence[float]]) -> list[Measured]:
    """The mean of several traits' values, item by item, then those of each, by name."""
    means = [sum(values) / len(values) for values in zip(*by_trait.values(), strict=True)]
    return [PERSONA.measured(means), *(PERSONA.of(name).measured(values) for name, values in by_trait.items())]


def _ratios(setup: Setup, trait: Trait, answers: Sequence[Answer]) -> list[float]:
    """The persona log-ratio of each answer for one trait."""
    from heal.scoring import completion_logprobs

    model = setup.language_model
    said = [answer for answer in answers if answer.ids]
    ids = [answer.ids for answer in said]
    prompts = [
        model.chat.ids(persona, answer.prompt, thought=answer.thought)
        for persona in (trait.positive, trait.negative)
        for answer in said
    ]
    with setup.base():
        logprobs = completion_logprobs(model, prompts, ids * 2)
    means = [float(logprob_N.double().mean()) for logprob_N in logprobs]
    scores = iter(
        positive - negative for positive, negative in zip(means[: len(said)], means[len(said) :], strict=True)
    )
    return [next(scores) if answer.ids else math.nan for answer in answers]
