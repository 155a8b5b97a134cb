"""Whether a round worked, checked in order, because a ratio alone would call a wreck a win.

Coherence is the worst of its signals: each has a limit, and its margin is 1 at base and 0 at the limit. Only
signals that are valid for the model count (heal/evaluation/validity.py). docs/method.md, Coherence and Verdict.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

from heal.evaluation.metrics import Coherence, SignalFigures, Summary, Verdict, of_each_trait
from heal.evaluation.signal import OF, TRAIT, Limit, Limits, limited


@dataclass(frozen=True)
class Target:
    """What a trait is to move beside its own score, and what it must move less.

    Attributes:
        signal: the signal that the off-target ones are held against.
        intent: +1 where it is to rise, -1 where it is to fall.
        off_target: signals, in the same unit, that must move less.
    """

    signal: str
    intent: int
    off_target: tuple[str, ...]


def coherence(summary: Summary, limits: Limits, valid: Collection[str]) -> Coherence:
    """The worst of the valid coherence signals; one that was not measured is left out.

    Raises:
        ValueError: none is valid.
    """
    worst = worst_signal(summary, limits, valid)
    if worst is None:
        raise ValueError("no signal of coherence is valid for this model")
    return worst


def worst_signal(summary: Summary, limits: Limits, valid: Collection[str]) -> Coherence | None:
    """As `coherence`; None where no signal of it is valid."""
    margins = {
        name: _margin(summary[name], limit, limits[name])
        for name, limit in limited().items()
        if name in summary and name in valid
    }
    if not margins:
        return None
    worst = min(margins, key=lambda name: (math.isfinite(margins[name]), margins[name]))
    return Coherence(worst, margins[worst])


def incoherences(summary: Summary, limits: Limits, valid: Collection[str]) -> list[str]:
    """Every valid coherence signal that is past its limit, in words; empty when coherent."""
    reasons = []
    for name, limit in limited().items():
        if name not in summary or name not in valid:
            continue
        value, edge = limit.counted(summary[name]), _edge(summary[name], limit, limits[name])
        if limit.past(value, edge):
            sign = ">" if limit.kind == "ceiling" else "<"
            reasons.append(f"{limit.words.format(value)} {sign} {edge:.3g}")
    return reasons


def verdict(summary: Summary, limits: Limits, valid: Collection[str], target: Target | None = None) -> Verdict:
    """Finite numbers, then coherence, then a trait shift, then off-target shifts smaller than the target's.

    Of several traits the mean decides, and the reason has each one's shift and says which do not move as they are to.

    Args:
        summary: each signal at this stage, with its paired difference to base.
        limits: of coherence.
        valid: the signals that are valid for the model; the others are not looked at.
        target: what else the trait is to move; None where nothing is meant but its own score.
    """
    broken = [name for name, figures in summary.items() if name in valid and not math.isfinite(figures.value)]
    if broken:
        return Verdict("not finite", f"not finite: {', '.join(broken)}")
    if reasons := incoherences(summary, limits, valid):
        return Verdict("incoherent", "; ".join(reasons))
    shift = summary[TRAIT].delta
    shown = f"{TRAIT} {shift.value:+.3f} [{shift.low:+.3f}, {shift.high:+.3f}] over base (n = {shift.n})"
    each = _of_each(summary, valid)
    if TRAIT not in valid:
        return Verdict("not valid", f"{shown}, but that readout is not valid for this model{each}")
    if not shift.low > 0:
        return Verdict("no trait shift", f"{shown}: not above zero{each}")
    if target is not None and target.signal in summary and (complaint := _off_target(summary, valid, target)):
        return Verdict("off-target", f"{shown}, but {complaint}{each}")
    least = coherence(summary, limits, valid)
    return Verdict("holds", f"{shown}; coherence margin {least.margin:.2f} ({least.worst}){each}")


def _of_each(summary: Summary, valid: Collection[str]) -> str:
    """`; by trait love +0.210 [+0.150, +0.270], wit +0.010 [-0.020, +0.040] (does not move)`; empty with one trait."""
    shown = []
    for trait, figures in of_each_trait(summary).items():
        shift, fault = figures.delta, ""
        if f"{TRAIT}{OF}{trait}" not in valid:
            fault = " (not valid for this model)"
        elif not shift.low > 0:
            fault = " (moves the wrong way)" if shift.high < 0 else " (does not move)"
        shown.append(f"{trait} {shift:+.3f}{fault}")
    return f"; by trait {', '.join(shown)}" if shown else ""


def _off_target(summary: Summary, valid: Collection[str], target: Target) -> str:
    """What moved that should not have; empty where nothing did."""
    moved = summary[target.signal].delta.value
    meant = target.intent * moved
    if target.signal in valid and meant <= 0:
        return f"{target.signal} moved by {moved:+.3f}, not as it is meant to"
    larger = [
        name
        for name in target.off_target
        if name in valid and name in summary and abs(summary[name].delta.value) >= meant
    ]
    return f"{', '.join(larger)} moved as much" if larger else ""


def _edge(figures: SignalFigures, limit: Limit, setting: float) -> float:
    """Where the limit is, given the signal's value at base."""
    return limit.at(setting, figures.value - figures.delta.value)


def _margin(figures: SignalFigures, limit: Limit, setting: float) -> float:
    value, edge = limit.counted(figures), _edge(figures, limit, setting)
    base = figures.value - figures.delta.value
    if limit.log:
        value, base, edge = (math.log(max(number, 1e-12)) for number in (value, base, edge))
    if math.isinf(edge):
        return 1.0  # no limit was set
    if math.isclose(base, edge, abs_tol=1e-9):
        beyond = not math.isclose(value, base, abs_tol=1e-9) and limit.past(value, base)
        return -1.0 if beyond else 1.0
    return (edge - value) / (edge - base)
