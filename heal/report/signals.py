"""Where a signal's limit lies in a run, and how far a stage is from the nearest one."""

import math

from heal.evaluation.metrics import Summary
from heal.evaluation.signal import Signal, limits_of
from heal.evaluation.stats import Estimate
from heal.evaluation.verdict import coherence
from heal.report.results import Results


def limit_at_base(results: Results, signal: Signal) -> float | None:
    """Where a signal's limit lies in this run; None where it has none, or none was set."""
    if signal.limit is None or signal.name not in results.base:
        return None
    setting = limits_of(results.recipe.evaluation)[signal.name]
    limit = signal.limit.at(setting, results.base[signal.name].value)
    return limit if math.isfinite(limit) else None


def margin(results: Results, summary: Summary) -> Estimate:
    """The coherence margin of a stage, without an interval; NaN where no signal of coherence is valid."""
    try:
        least = coherence(summary, limits_of(results.recipe.evaluation), results.valid).margin
    except ValueError:
        least = math.nan
    return Estimate(least, math.nan, math.nan, 1)
