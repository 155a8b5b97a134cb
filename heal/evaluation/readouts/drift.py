"""Drift: KL of the stage to base, per token of neutral held-out texts. 0 at base, bit for bit."""

from collections.abc import Sequence

from heal.evaluation.results import Answer, Signal
from heal.evaluation.subject import Subject
from heal.scoring import token_divergences

LEVELS = {"p50": 0.5, "p95": 0.95, "max": 1.0}


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Signal]:
    """`neutral_kl_p50`, `_p95`, `_max`: quantiles over a text's tokens of KL(stage || base), one item a text."""
    texts = subject.neutral_texts
    if texts is None:
        return []
    base = texts.base_states(subject.base)
    with subject.in_force():
        states = texts.states(subject.system)
    with subject.base():
        divergences = token_divergences(subject.language_model, states, base)
    return [
        Signal(
            f"neutral_kl_{name}",
            "nats",
            "off_target",
            "mean",
            tuple(float(kl_N.double().quantile(level)) for kl_N in divergences),
            "texts",
        )
        for name, level in LEVELS.items()
    ]
