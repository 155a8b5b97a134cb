"""Whether a readout says anything about the model at hand, judged on base before any round. METRICS: valid.

A forced choice is valid where base puts its mass on the options and, if something is read off the choice itself, tells
the classes apart better than chance; the persona log-ratio where it tells base under the positive persona from base
under the negative one; a signal of coherence that has a limit where base itself is within it. What is merely counted
(lengths, drift) is always valid.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heal.evaluation.stats import Estimate, paired_difference
from heal.evaluation.verdict import LIMITED, Floors
from heal.evaluation.vignettes import FOUNDATIONS

MIN_MASS = 0.9  # of base on the options of a forced choice
TRAIT = "persona_log_ratio"


@dataclass(frozen=True)
class Validity:
    """Whether a signal can be believed on this model, and what that rests on."""

    valid: bool
    why: str


def validity(
    base: dict[str, Estimate],
    prompted: Sequence[float],
    opposite: Sequence[float],
    floors: Floors,
    resamples: int,
    seed: int,
) -> dict[str, Validity]:
    """The validity of every signal that base has.

    Args:
        base: base's signals.
        prompted, opposite: the persona log-ratio, answer by answer, of base under the positive and under the
            negative persona.
        floors: of coherence.
        resamples, seed: of the interval of the persona log-ratio's difference.
    """
    apart = paired_difference(prompted, opposite, "mean", resamples, seed)
    found = {name: _judge(name, base, floors) for name in base}
    found[TRAIT] = Validity(
        apart.low > 0,
        f"positive over negative persona {apart.value:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}] (n = {apart.n})",
    )
    return found


def valid_names(found: dict[str, Validity]) -> set[str]:
    """The signals that are valid."""
    return {name for name, entry in found.items() if entry.valid}


def doubts(found: Mapping[str, Validity]) -> list[str]:
    """What is not valid, in words: one text a reason."""
    names: dict[str, list[str]] = {}
    for name, entry in found.items():
        if not entry.valid:
            names.setdefault(entry.why, []).append(name)
    return [f"{', '.join(of)} ({why})" for why, of in names.items()]


def from_json(content: dict[str, Any]) -> dict[str, Validity]:
    """What `asdict` of each wrote."""
    return {name: Validity(**entry) for name, entry in content.items()}


def _judge(name: str, base: dict[str, Estimate], floors: Floors) -> Validity:
    judged = [_forced_choice(base, mass, informed) for members, mass, informed in _FORCED_CHOICES if name in members]
    if name in LIMITED:
        judged.append(_within_limit(name, base, floors))
    if not judged:
        return Validity(True, "counted, not judged")
    failed = next((each for each in judged if not each.valid), None)
    return failed or Validity(True, "; ".join(each.why for each in judged))


def _within_limit(name: str, base: dict[str, Estimate], floors: Floors) -> Validity:
    entry, value = LIMITED[name], base[name].value
    limit = entry.limit(floors, value)
    inside = not math.isnan(value) and not entry.past(value, floors, value)
    return Validity(inside, f"base {value:.3g}, {'ceiling' if entry.rises else 'floor'} {limit:.3g}")


def _forced_choice(base: dict[str, Estimate], mass: str, informed: str | None) -> Validity:
    why = f"base's mass on the options {base[mass].value:.3f}, at least {MIN_MASS:g} needed"
    if not base[mass].value >= MIN_MASS:
        return Validity(False, why)
    if informed is None:
        return Validity(True, why)
    entry = base[informed]
    if entry.n == 0:
        return Validity(False, f"{why}; informedness needs right answers of two kinds, and there is one or none")
    known = f"informedness {entry.value:+.3f} [{entry.low:+.3f}, {entry.high:+.3f}] (n = {entry.n}), 0 is chance"
    return Validity(entry.low > 0, f"{why}; {known}")


_FOUNDATIONS = (*(f"clr_{name}" for name in FOUNDATIONS), *(f"{name}_nats" for name in FOUNDATIONS))
# Signals of a forced choice, the signal of its mass, and the one of what it must tell apart.
_FORCED_CHOICES: tuple[tuple[tuple[str, ...], str, str | None], ...] = (
    (("p_ans_any", "unscorable_share"), "p_ans_any", None),
    (("accuracy", "question_informedness"), "p_ans_any", "question_informedness"),
    (("alive_share", "probe_mass", "scaffold_nats"), "probe_mass", None),
    ((*_FOUNDATIONS, "vignette_mass", "vignette_informedness"), "vignette_mass", "vignette_informedness"),
    (("wrongness", "wrongness_mass", "wrongness_informedness"), "wrongness_mass", "wrongness_informedness"),
)
