"""What base's likelihood says about answers: the perplexity of their tails, and relevance.

Relevance: does an answer speak to its prompt, or is it the same whatever was asked? Base's log-likelihood of an answer
after its own prompt, against the same after other held-out prompts. docs/method.md, Coherence and Relevance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from heal.evaluation.signal import Identifies, Limit, Measured, Signal
from heal.generation.rivals import RIVALS, rivals

if TYPE_CHECKING:
    from heal.evaluation.results import Answer
    from heal.evaluation.subject import Subject

_VALIDITY = Identifies("identified_share", 1 + RIVALS)

IDENTIFIED = Signal(
    "identified_share",
    unit="share",
    title="On prompt",
    note="fraction of answers",
    detail="fraction of answers that base finds likelier after their own prompt than after any other one that they are "
    "held against; chance is one in so many prompts",
    role="coherence",
    better="higher",
    digits=2,
    limit=Limit(
        "max_identified_fall",
        0.25,
        "coherence floor: fraction of answers that speak to their own prompt, below base's",
        kind="floor",
        words="answers to their own prompt {:.0%}",
        over_base=True,
        minimum=0,
        maximum=1,
    ),
    validity=_VALIDITY,
    headline=True,
    trajectory=True,
    order=2,
)
RELEVANCE = Signal(
    "relevance",
    unit="nats/token",
    title="Relevance",
    note="nats/token",
    detail="log p_base(answer | its prompt) \N{MINUS SIGN} log of the mean of p_base(answer | prompt) over its prompt "
    "and the others, per token; 0 says nothing about the prompt",
    role="coherence",
    better="higher",
    validity=_VALIDITY,
    chance=0.0,
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
SIGNALS = (TAIL_PERPLEXITY, IDENTIFIED, RELEVANCE)


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Measured]:
    """One item an answer, after the neutral system prompt; NaN for an answer without tokens.

    The tail is read after the answer's thought, if there is one; relevance is asked of the prompt alone. It is NaN as
    well where a prompt has no other to be told from.
    """
    from heal.generation.relevance import beginning, read_in_context

    setup = subject.setup
    with setup.base():
        readings = read_in_context(
            setup.language_model,
            [setup.language_model.chat.ids(setup.system, answer.prompt) for answer in answers],
            [answer.prompt_ids for answer in answers],
            [answer.ids for answer in answers],
            range(len(answers)),
            rivals([answer.prompt for answer in answers]),
            beginning(setup.tokens),
        )
    found = [reading.relevance for reading in readings]
    return [
        TAIL_PERPLEXITY.measured([reading.tail_perplexity for reading in readings]),
        IDENTIFIED.measured([math.nan if one is None else float(one.identified) for one in found]),
        RELEVANCE.measured([math.nan if one is None else one.per_token for one in found]),
    ]
