"""Stages of a tiny model to measure, and summaries of made-up numbers."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest

from heal.evaluation.metrics import SignalFigures, Summary
from heal.evaluation.readouts import moral_foundations, questions, wrongness
from heal.evaluation.signal import Limits, limited, signals
from heal.evaluation.stats import Estimate
from heal.evaluation.subject import Setup
from heal.models.language_model import LanguageModel
from tests.tiny import trait

NEUTRAL = "Be brief."
APART = 7  # items by which ways of asking are chosen where a test is about something else


def choose_by_few(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Has every way of asking tried on the first APART items only; for what runs in this process."""
    for readout in (moral_foundations, questions, wrongness):
        few = folder / readout.APART.name
        few.write_text("".join(readout.APART.read_text(encoding="utf-8").splitlines(keepends=True)[:APART]), "utf-8")
        patch.setattr(readout, "APART", few)


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


def healthy(name: str, limits: Limits) -> float:
    """A value of base that is well within the limit of a signal, as its description says."""
    limit, setting = limited()[name], limits[name]
    if limit.over_base:
        return 0.9
    if limit.kind == "ceiling":
        return ((limit.minimum or 0.0) + setting) / 2
    return (setting + (setting + 1 if limit.maximum is None else limit.maximum)) / 2


def on_the_way(name: str, limits: Limits, base: float, part: float) -> float:
    """The value of a signal that has gone this part of the way from base to its limit; past it beyond 1."""
    return base + part * (limited()[name].at(limits[name], base) - base)


def summary(values: Mapping[str, Estimate], deltas: Mapping[str, Estimate]) -> Summary:
    """A stage's signals; one without a difference did not move."""
    still = around(0.0)
    return {name: _figures(name, value, deltas.get(name, still)) for name, value in values.items()}


def _figures(name: str, value: Estimate, delta: Estimate) -> SignalFigures:
    known = signals().get(name)
    role, unit = ("off_target", "nats") if known is None else (known.role, known.unit)
    return SignalFigures(value.value, value.low, value.high, value.n, delta, role, unit)
