"""Whether a model that thinks before it answers comes to an answer at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from heal.evaluation.signal import Limit, Measured, Signal

if TYPE_CHECKING:
    from heal.evaluation.results import Answer
    from heal.evaluation.subject import Subject

UNCLOSED = Signal(
    "unclosed_share",
    unit="share",
    title="Without an answer",
    note="fraction of prompts",
    detail="fraction of held-out prompts whose thought was not closed within {recipe.model.thinking_tokens} tokens, so "
    "that there is no answer",
    role="coherence",
    better="lower",
    digits=2,
    limit=Limit(
        "max_unclosed_share",
        0.25,
        "coherence ceiling: fraction of thoughts without an end (model.thinking)",
        kind="ceiling",
        words="prompts without an answer {:.0%}",
        minimum=0,
        maximum=1,
    ),
    order=2,
)
SIGNALS = (UNCLOSED,)


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Measured]:
    """One item an answer; nothing where the model is not to think."""
    if not subject.setup.language_model.thinking:
        return []
    return [UNCLOSED.measured([float(answer.unclosed) for answer in answers])]
