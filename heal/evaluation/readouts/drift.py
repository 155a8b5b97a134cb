"""Drift: KL of the stage to base, per token of neutral held-out texts. 0 at base, bit for bit.

docs/method.md, Drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from heal.evaluation.signal import Measured, Signal

if TYPE_CHECKING:
    from torch import Tensor

    from heal.evaluation.results import Answer
    from heal.evaluation.subject import Subject

# Quantiles over a text's tokens, and what a title calls them.
LEVELS = {"p50": (0.5, "median"), "p95": (0.95, "p95"), "max": (1.0, "largest")}

DRIFT = {
    level: Signal(
        f"neutral_kl_{level}",
        unit="nats",
        title=f"KL on neutral text, {word}",
        note="nats, over a text's tokens",
        detail="per token of plain answers that no one trained on, KL(student \N{PARALLEL TO} base); "
        f"{word} over the tokens of a text, mean over texts",
        role="off_target",
        better="lower",
        items="texts",
        order=1,
    )
    for level, (_, word) in LEVELS.items()
}
SIGNALS = tuple(DRIFT.values())


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Measured]:
    """KL(stage || base), one item a text; nothing without neutral texts."""
    from heal.parallel import over_rows
    from heal.scoring import token_divergences

    setup = subject.setup
    texts = setup.neutral_texts
    if texts is None:
        return []

    def from_base(share: range) -> list[Tensor]:
        base = texts.base_states(setup.base, share)
        with subject.in_force():
            states = texts.states(subject.system, share)
        with setup.base():
            return token_divergences(setup.language_model, states, base)

    divergences = over_rows(len(texts.prompts), from_base)
    return [
        DRIFT[level].measured([float(kl_N.double().quantile(quantile)) for kl_N in divergences])
        for level, (quantile, _) in LEVELS.items()
    ]
