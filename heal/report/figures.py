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
    NARROW,
    PAST,
    PROMPTED,
    WIDTH,
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
from heal.report.signals import decides, limit_at_base, moved
from heal.report.trajectory import trajectory


def draw(results: Results, width: float = WIDTH) -> dict[str, bytes]:
    """Every figure by name, `width` inches wide; the side effects where some were measured that are valid and moved."""
    moving = [signal for signal in described(results.base) if moved(results, signal)]
    figures = {
        "trajectory": trajectory(results, width),
        "signals": signals(results, [signal for signal in moving if decides(signal)], width),
        "calibration": calibration(results, width),
        "training": training(results, width),
    }
    if effects := [signal for signal in moving if not decides(signal) and signal.name in results.valid]:
        figures["side-effects"] = signals(results, effects, width)
    return figures


def signals(results: Results, shown: Sequence[Signal], width: float = WIDTH) -> bytes:
    """Each signal by round, with its interval and its limit: steered and healed against base and prompted."""
    columns = 3 if width > NARROW else 2  # of small panels, one a signal
    rows = max(-(-len(shown) // columns), 1)
    figure, axes = new_figure(rows, columns, (0.9 if width > NARROW else 1.4) + 1.85 * rows, width=width)
    for axis, signal in zip(axes, shown, strict=False):
        _draw_signal(axis, signal, results, notes=width > NARROW)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    handles = [
        Line2D([], [], color=INK, marker="o", markersize=5, label="healed (base at the left)"),
        *([mark("o", INK, "steered at c*", hollow=True)] if results.last.steered else []),
        Line2D([], [], color=PROMPTED, linewidth=1.2, label="prompted, with interval"),
    ]
    if any(signal.limit is not None for signal in shown):
        handles.append(mark("s", PAST, "past the limit of coherence"))
    if any(signal.chance is not None for signal in shown):
        handles.append(Line2D([], [], color=MUTED, linestyle=":", linewidth=1, label="chance"))
    legend(figure, handles, 3 if width > NARROW else 1)
    return png(figure)


def _draw_signal(axis: Axes, signal: Signal, results: Results, notes: bool) -> None:
    judged = results.validity.get(signal.name)
    valid = judged is None or judged.valid
    note = (signal.note if notes else "") if valid else "not valid here"
    axis.set_title(
        f"{signal.title}\n{note}".strip(),
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
    if signal.chance is not None and axis.get_ylim()[0] <= signal.chance <= axis.get_ylim()[1]:
        axis.axhline(signal.chance, color=MUTED, linestyle=":", linewidth=1)
    edge = limit_at_base(results, signal)
    if signal.limit is not None and signal.limit.log and axis.get_ylim()[0] > 0:
        log_axis(axis, "y")
    if edge is not None and signal.limit is not None:
        _shade_past(axis, edge, signal.limit.kind == "ceiling")
    count = len(results.rounds)
    every = 1 + count // 9
    axis.set_xticks(range(0, count + 1, every), ["base", *(str(r.number) for r in results.rounds)][::every])
    axis.set_xlim(-0.4, count + 0.4)
    axis.tick_params(labelsize=7.5)


def _shade_past(axis: Axes, edge: float, ceiling: bool) -> None:
    """Shades what is past the limit, which is brought into view."""
    low, high = axis.get_ylim()
    if axis.get_yscale() == "log":
        low, high = (min(low, edge / 1.3), high) if not ceiling else (low, max(high, edge * 1.3))
    else:
        room = 0.12 * max(high - low, abs(edge - (low if ceiling else high)))
        low, high = (low, max(high, edge + room)) if ceiling else (min(low, edge - room), high)
        spare = 0.04 * (high - low)
        low, high = (low - spare, high) if ceiling else (low, high + spare)
    axis.axhspan(*((edge, high) if ceiling else (low, edge)), color=PAST, alpha=0.13, linewidth=0)
    axis.axhline(edge, color=PAST, linestyle=DASHES, linewidth=1)
    axis.set_ylim(low, high)


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


def calibration(results: Results, width: float = WIDTH) -> bytes:
    """p95 and p50 of the per-token KL against the coefficient, the target, `c_star`, and the audit."""
    figure, (axis,) = new_figure(1, 1, 5.0, width=width)
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
    legend(figure, handles, 3 if width > NARROW else 2)
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


def training(results: Results, width: float = WIDTH) -> bytes:
    """CE and, with a barrier, D and the fraction of completions whose barrier is on, round after round."""
    settings, count = results.recipe.heal, len(results.rounds)
    barrier = divergence_named(settings.barrier.divergence).needs_reference
    names = ("ce", "D_mean", "barrier_on") if barrier else ("ce",)
    heights = (1.2, 1.2, 0.8)[: len(names)]
    figure, drawn = new_figure(len(names), 1, 1.0 + 1.9 * sum(heights), sharex=True, heights=heights, width=width)
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
    few = count <= (8 if width > NARROW else 4)
    ticks = [r.number - 0.5 for r in results.rounds]
    drawn[-1].set_xticks(ticks, [f"round {r.number}" if few else str(r.number) for r in results.rounds])
    handles = [
        Line2D([], [], color=MUTED, linewidth=0.9, alpha=0.5, label="step"),
        Line2D([], [], color=MUTED, linewidth=2.2, label="mean of an epoch"),
        mark("D", MUTED, "validation", hollow=True),
    ]
    if barrier:
        handles.append(Line2D([], [], color=MUTED, linestyle=":", linewidth=1, label="largest D of a step"))
        handles.append(Line2D([], [], color=MUTED, linestyle=DASHES, linewidth=1, label="tau"))
    legend(figure, handles, 5 if width > NARROW else 2)
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
