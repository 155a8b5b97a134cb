"""Stages of a tiny model to measure, and summaries of made-up numbers."""

from collections.abc import Mapping
from contextlib import nullcontext

from heal.evaluation.metrics import SignalFigures, Summary
from heal.evaluation.signal import signals
from heal.evaluation.stats import Estimate
from heal.evaluation.subject import Setup
from heal.models.language_model import LanguageModel
from tests.tiny import trait

NEUTRAL = "Be brief."


def setup(language_model: LanguageModel, **changes) -> Setup:
    """A small evaluation of a model that is its own base, unless `changes` say otherwise."""
    given = {
        "language_model": language_model,
        "trait": trait(),
        "base": nullcontext,
        "system": NEUTRAL,
        "prompts": trait().heldout_prompts,
        "tokens": 12,
        "max_repetition": 0.3,
        "questions": 8,
    }
    return Setup(**(given | changes))


def around(value: float, width: float = 0.02) -> Estimate:
    """An estimate over 16 items whose interval is so wide on either side."""
    return Estimate(value, value - width, value + width, 16)


def summary(values: Mapping[str, Estimate], deltas: Mapping[str, Estimate]) -> Summary:
    """A stage's signals; one without a difference did not move."""
    still = around(0.0)
    return {name: _figures(name, value, deltas.get(name, still)) for name, value in values.items()}


def _figures(name: str, value: Estimate, delta: Estimate) -> SignalFigures:
    known = signals().get(name)
    role, unit = ("off_target", "nats") if known is None else (known.role, known.unit)
    return SignalFigures(value.value, value.low, value.high, value.n, delta, role, unit)
