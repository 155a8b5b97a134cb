"""Where a signal's limit lies in a run, and how far a stage is from the nearest one."""

import math

from heal.evaluation.metrics import Coherence, Summary
from heal.evaluation.signal import Signal, limits_of
from heal.evaluation.stats import Estimate
from heal.evaluation.verdict import worst_signal
from heal.report.results import Results


def limit_at_base(results: Results, signal: Signal) -> float | None:
    """Where a signal's limit lies in this run; None where it has none, or none was set."""
    if signal.limit is None or signal.name not in results.base:
        return None
    setting = limits_of(results.recipe.evaluation)[signal.name]
    limit = signal.limit.at(setting, results.base[signal.name].value)
    return limit if math.isfinite(limit) else None


def decides(signal: Signal) -> bool:
    """Whether a verdict rests on the signal."""
    return signal.role == "trait" or signal.limit is not None


def moved(results: Results, signal: Signal) -> bool:
    """Whether the signal differs from base, as its digits show it, after some round or under some round's vector."""
    stages = [stage for finished in results.rounds for stage in (finished.healed, finished.steered) if stage]
    shifts = [stage[signal.name].delta.value for stage in stages if signal.name in stage]
    return signal.role == "trait" or any(round(shift, signal.digits) != 0 for shift in shifts if math.isfinite(shift))


def binding(results: Results, summary: Summary) -> Coherence | None:
    """The signal with the least margin at a stage; None where no signal of coherence is valid."""
    return worst_signal(summary, limits_of(results.recipe.evaluation), results.valid)


def margin(results: Results, summary: Summary) -> Estimate:
    """The coherence margin of a stage, without an interval; NaN where no signal of coherence is valid."""
    least = binding(results, summary)
    return Estimate(math.nan if least is None else least.margin, math.nan, math.nan, 1)
