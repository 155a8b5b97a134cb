"""The signals of a run as the report shows them: their descriptions, limits and coherence margins."""

import math

from heal.evaluation.metrics import SignalFigures, Summary
from heal.evaluation.signal import Signal, limits_of, signals
from heal.evaluation.stats import Estimate
from heal.evaluation.verdict import coherence
from heal.report.results import Results


def described(summary: Summary) -> list[Signal]:
    """The signals of a stage in display order; what no readout describes any more comes last, under its own name."""
    return [
        *(signal for name, signal in signals().items() if name in summary),
        *(_undescribed(name, figures) for name, figures in summary.items() if name not in signals()),
    ]


def headline_signals(summary: Summary) -> list[Signal]:
    """The signals that stand beside the trait wherever there is room for few."""
    return [signal for signal in described(summary) if signal.headline]


def trajectory_signals(summary: Summary) -> list[Signal]:
    """The signals that the trait is drawn against, beside the coherence margin."""
    return [signal for signal in described(summary) if signal.trajectory]


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


def _undescribed(name: str, figures: SignalFigures) -> Signal:
    return Signal(name, figures.unit, title=name, note=figures.unit, detail="", role=figures.role)
