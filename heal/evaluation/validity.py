"""Whether a readout says anything about the model at hand, judged on base before any round.

A forced choice is valid where base puts its mass on the options and, if something is read off the choice itself, tells
the classes apart better than chance; the persona log-ratio where it tells base under the positive persona from base
under the negative one; a signal of coherence that has a limit where base itself is within it. What is merely counted
(lengths, drift) is always valid. Each signal's description says which rule holds for it (heal/evaluation/signal.py).
docs/method.md, Forced choice.
"""

import math
from collections.abc import Mapping

from heal.evaluation.signal import Evidence, Limit, Limits, Validity, signal_named


def validity(evidence: Evidence, limits: Limits) -> dict[str, Validity]:
    """The validity of every signal that base has, within the `limits` of coherence."""
    return {name: _judge(name, evidence, limits) for name in evidence.base}


def valid_names(judged: Mapping[str, Validity]) -> frozenset[str]:
    """The signals that are valid."""
    return frozenset(name for name, judgement in judged.items() if judgement.valid)


def doubts(judged: Mapping[str, Validity]) -> list[str]:
    """What is not valid, in words: one text a reason."""
    by_reason: dict[str, list[str]] = {}
    for name, judgement in judged.items():
        if not judgement.valid:
            by_reason.setdefault(judgement.why, []).append(name)
    return [f"{', '.join(names)} ({why})" for why, names in by_reason.items()]


def _judge(name: str, evidence: Evidence, limits: Limits) -> Validity:
    signal = signal_named(name)
    judgements: list[Validity] = []
    if signal is not None and signal.validity is not None:
        judgements.append(signal.validity.judge(name, evidence))
    if signal is not None and signal.limit is not None:
        judgements.append(_within(signal.limit, evidence.base[name].value, limits[name]))
    if not judgements:
        return Validity(True, "counted, not judged")
    failed = next((judgement for judgement in judgements if not judgement.valid), None)
    return failed or Validity(True, "; ".join(judgement.why for judgement in judgements))


def _within(limit: Limit, value: float, setting: float) -> Validity:
    edge = limit.at(setting, value)
    inside = not math.isnan(value) and not limit.past(value, edge)
    return Validity(inside, f"base {value:.3g}, {limit.kind} {edge:.3g}")
