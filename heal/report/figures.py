"""The report's figures as PNG bytes.

Colours: rounds run from dark to light along one perceptually uniform map, so their order survives
grey printing and colour blindness; no text of the user or the model is drawn.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from heal.dose.calibration import PathDivergence
from heal.evaluation.signal import Signal, described
from heal.evaluation.stats import Estimate
from heal.healing.divergences import divergence_named
from heal.healing.log import StepLog
from heal.report.drawing import (
    DASHES,
    INK,
    MUTED,
    PROMPTED,
    arms,
    drawable,
    legend,
    log_axis,
    mark,
    new_figure,
    png,
    round_colours,
)
from heal.report.results import Results, Round
from heal.report.signals import limit_at_base
from heal.report.trajectory import trajectory

COLUMNS = 3  # of the small panels, one a signal


def draw(results: Results) -> dict[str, bytes]:
    """Every figure by name; the side effects where some were measured that are valid."""
    measured = described(results.base)
    figures = {
        "trajectory": trajectory(results),
        "signals": signals(results, [signal for signal in measured if not signal.is_side_effect]),
        "calibration": calibration(results),
        "training": training(results),
    }
    if effects := [signal for signal in measured if signal.is_side_effect and signal.name in results.valid]:
        figures["side-effects"] = signals(results, effects)
    return figures


def signals(results: Results, shown: Sequence[Signal]) -> bytes:
    """Each signal by round, with its interval: steered and healed against base and prompted."""
    rows = max(-(-len(shown) // COLUMNS), 1)
    figure, axes = new_figure(rows, COLUMNS, 0.9 + 1.85 * rows)
    for axis, signal in zip(axes, shown, strict=False):
        _draw_signal(axis, signal, results)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    handles = [
        Line2D([], [], color=INK, marker="o", markersize=5, label="healed (base at the left)"),
        *([mark("o", INK, "steered at c*", hollow=True)] if results.last.steered else []),
        Line2D([], [], color=PROMPTED, linewidth=1.2, label="prompted, with interval"),
    ]
    if any(signal.limit is not None for signal in shown):
        handles.append(Line2D([], [], color=MUTED, linestyle=DASHES, linewidth=1, label="limit of coherence"))
    if any(signal.chance is not None for signal in shown):
        handles.append(Line2D([], [], color=MUTED, linestyle=":", linewidth=1, label="chance"))
    legend(figure, handles, 3)
    return png(figure)


def _draw_signal(axis: Axes, signal: Signal, results: Results) -> None:
    judged = results.validity.get(signal.name)
    valid = judged is None or judged.valid
    axis.set_title(
        f"{signal.title}\n{signal.note if valid else 'not valid here'}",
        fontsize=8.5,
        loc="left",
        color=INK if valid else MUTED,
    )
    prompted = results.prompted.get(signal.name)
    if drawable(prompted):
        axis.axhspan(prompted.low, prompted.high, color=PROMPTED, alpha=0.10, linewidth=0)
        axis.axhline(prompted.value, color=PROMPTED, linewidth=1.2)
    steered = [(r.number, r.steered.get(signal.name)) for r in results.rounds if r.steered is not None]
    healed = [(r.number, r.healed.get(signal.name)) for r in results.rounds]
    _series(axis, steered, 0.09, hollow=True)
    _series(axis, [(0, results.base.get(signal.name)), *healed], -0.09, hollow=False)
    if signal.unit == "share":
        axis.set_ylim(-0.05, 1.05)
    low, high = axis.get_ylim()
    for level, line in ((limit_at_base(results, signal), DASHES), (signal.chance, ":")):
        if level is not None and low <= level <= high:
            axis.axhline(level, color=MUTED, linestyle=line, linewidth=1)
    if signal.limit is not None and signal.limit.log and low > 0:
        log_axis(axis, "y")
    count = len(results.rounds)
    every = 1 + count // 9
    axis.set_xticks(range(0, count + 1, every), ["base", *(str(r.number) for r in results.rounds)][::every])
    axis.set_xlim(-0.4, count + 0.4)
    axis.tick_params(labelsize=7.5)


def _series(axis: Axes, points: Iterable[tuple[int, Estimate | None]], shift: float, hollow: bool) -> None:
    """One stage over the rounds."""
    shown = [(number + shift, estimate) for number, estimate in points if drawable(estimate)]
    if not shown:
        return
    axis.errorbar(
        [x for x, _ in shown],
        [estimate.value for _, estimate in shown],
        yerr=np.array([arms(estimate) for _, estimate in shown]).T,
        color=INK,
        marker="o",
        markersize=4.5,
        markerfacecolor="white" if hollow else INK,
        linestyle="none" if hollow else "-",
        linewidth=1.2,
        elinewidth=0.9,
        zorder=3,
    )


def calibration(results: Results) -> bytes:
    """p95 and p50 of the per-token KL against the coefficient, the target, `c_star`, and the audit."""
    figure, (axis,) = new_figure(1, 1, 5.0)
    settings = results.recipe.calibration
    low = max(settings.target - settings.tolerance, settings.target * 0.01)
    axis.axhspan(low, settings.target + settings.tolerance, color=MUTED, alpha=0.13, linewidth=0)
    axis.axhline(settings.target, color=MUTED, linestyle=DASHES, linewidth=1)
    colours = round_colours(len(results.rounds))
    for finished, colour in zip(results.rounds, colours, strict=True):
        _draw_search(axis, finished, colour)
    log_axis(axis, "x")
    log_axis(axis, "y")
    axis.set_xlabel("coefficient c (log)")
    axis.set_ylabel("KL(on || off) per token, nats (log)")
    keys = [
        Line2D([], [], color=colour, linewidth=3, label=f"round {finished.number}")
        for finished, colour in zip(results.rounds, colours, strict=True)
    ]
    box = {"facecolor": "white", "edgecolor": "none", "framealpha": 0.85}
    axis.legend(handles=keys, loc="lower right", ncols=1 + len(keys) // 5, fontsize=9, labelcolor=INK, **box)
    handles = [
        Line2D([], [], color=MUTED, marker="o", markersize=5, linewidth=1.5, label="95th percentile"),
        Line2D([], [], color=MUTED, marker=".", markersize=5, linestyle=":", label="median"),
        Line2D([], [], color=MUTED, linestyle=DASHES, linewidth=1, label="target ± tolerance"),
        Line2D([], [], color=MUTED, marker="*", markersize=12, linestyle="none", label="c*"),
        mark("D", MUTED, "audit at c*, held-out prompts", hollow=True),
    ]
    legend(figure, handles, 3)
    return png(figure)


def _draw_search(axis: Axes, finished: Round, colour: Any) -> None:
    """One round's evaluations, its c* and its audit."""
    dose = finished.calibration
    points = sorted((point for point in dose.history if point.c > 0), key=lambda point: point.c)
    _draw_quantile(axis, [(p.c, p.p95) for p in points], color=colour, linestyle="-", marker="o", linewidth=1.5)
    _draw_quantile(axis, [(p.c, p.p50) for p in points], color=colour, linestyle=":", marker=".", linewidth=1.1)
    if dose.c_star <= 0:
        return
    star = {"marker": "*", "markersize": 15, "markeredgecolor": "white", "markeredgewidth": 0.8}
    _draw_quantile(axis, [(dose.c_star, dose.value)], color=colour, linestyle="none", zorder=4, **star)
    audit: list[PathDivergence] = [] if dose.audit is None else [dose.audit]
    diamond = {"marker": "D", "markersize": 7, "markerfacecolor": "white", "markeredgewidth": 1.4}
    _draw_quantile(axis, [(dose.c_star, p.p95) for p in audit], color=colour, linestyle="none", zorder=4, **diamond)


def _draw_quantile(axis: Axes, points: Sequence[tuple[float, float]], **style: Any) -> None:
    """The points whose KL has a place on a logarithmic axis."""
    shown = [(c, kl) for c, kl in points if 0 < kl < math.inf]
    axis.plot([c for c, _ in shown], [kl for _, kl in shown], **({"markersize": 5} | style))


def training(results: Results) -> bytes:
    """CE and, with a barrier, D and the fraction of completions whose barrier is on, round after round."""
    settings, count = results.recipe.heal, len(results.rounds)
    barrier = divergence_named(settings.barrier.divergence).needs_reference
    names = ("ce", "D_mean", "barrier_on") if barrier else ("ce",)
    heights = (1.2, 1.2, 0.8)[: len(names)]
    figure, drawn = new_figure(len(names), 1, 1.0 + 1.9 * sum(heights), sharex=True, heights=heights)
    axes = dict(zip(names, drawn, strict=True))
    for finished, colour in zip(results.rounds, round_colours(count), strict=True):
        _draw_training(axes, finished, settings.epochs, colour)
    axes["ce"].set_ylabel("CE, nats/token")
    if barrier:
        axes["D_mean"].axhline(settings.barrier.tau, color=MUTED, linestyle=DASHES, linewidth=1)
        axes["D_mean"].set_ylabel("D, nats")
        axes["D_mean"].set_ylim(bottom=-0.03 * axes["D_mean"].get_ylim()[1])
        axes["barrier_on"].set_ylabel("barrier on, fraction")
        axes["barrier_on"].set_ylim(-0.05, 1.05)
    for axis in drawn:
        axis.grid(False, axis="x")
        axis.tick_params(axis="x", length=0)
        for edge in range(1, count):
            axis.axvline(edge, color=MUTED, linewidth=0.6, alpha=0.5)
    drawn[-1].set_xlim(-0.015 * count, 1.015 * count)
    drawn[-1].set_xticks([r.number - 0.5 for r in results.rounds], [f"round {r.number}" for r in results.rounds])
    handles = [
        Line2D([], [], color=MUTED, linewidth=0.9, alpha=0.5, label="step"),
        Line2D([], [], color=MUTED, linewidth=2.2, label="mean of an epoch"),
        mark("D", MUTED, "validation", hollow=True),
    ]
    if barrier:
        handles.append(Line2D([], [], color=MUTED, linestyle=":", linewidth=1, label="largest D of a step"))
        handles.append(Line2D([], [], color=MUTED, linestyle=DASHES, linewidth=1, label="tau"))
    legend(figure, handles, 5)
    return png(figure)


def _draw_training(axes: dict[str, Axes], finished: Round, epochs: int, colour: Any) -> None:
    """One round's steps, the mean of each epoch, and the validations; an axis a quantity."""
    start = finished.number - 1  # on an axis that counts rounds, round 1 takes up 0 to 1
    steps = [log for log in finished.training if log.phase == "train" and "ce" in log.values]
    validations = [log for log in finished.training if log.phase == "eval"]
    x = [start + log.epoch / epochs for log in steps]
    diamond: dict[str, Any] = {
        "marker": "D",
        "markersize": 6,
        "markerfacecolor": "white",
        "markeredgewidth": 1.3,
        "linestyle": "none",
    }
    for name, axis in axes.items():
        axis.plot(x, _column(steps, name), color=colour, linewidth=0.9, alpha=0.4)
        axis.plot(*_epoch_means(start, steps, name, epochs), color=colour, linewidth=2.2)
        at = [start + log.epoch / epochs for log in validations]
        axis.plot(at, _column(validations, name), color=colour, zorder=4, **diamond)
    if "D_mean" in axes:
        axes["D_mean"].plot(x, _column(steps, "D_max"), color=colour, linewidth=0.9, linestyle=":")


def _column(logs: Sequence[StepLog], name: str) -> list[float]:
    return [log.values.get(name, math.nan) for log in logs]


def _epoch_means(start: int, steps: Sequence[StepLog], name: str, epochs: int) -> tuple[list[float], list[float]]:
    """The mean over each epoch's steps, one level line an epoch."""
    x: list[float] = []
    y: list[float] = []
    for epoch in range(epochs):
        within = [log for log in steps if epoch < log.epoch <= epoch + 1 + 1e-9]
        if within:
            values = _column(within, name)
            x += [start + epoch / epochs, start + (epoch + 1) / epochs, math.nan]
            y += [sum(values) / len(values)] * 2 + [math.nan]
    return x, y
