"""The report's figures as PNG bytes.

Colours: rounds run from dark to light along one perceptually uniform map, so their order survives
grey printing and colour blindness; no text of the user or the model is drawn.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from heal.evaluation.signal import limits_of
from heal.evaluation.stats import Estimate
from heal.report.drawing import (
    DASHES,
    DOTS,
    INK,
    MUTED,
    PROMPTED,
    arms,
    draw_point,
    drawable,
    legend,
    log_axis,
    mark,
    new_figure,
    png,
    round_colours,
    settle,
)
from heal.report.labels import Label, Segment, place_labels
from heal.report.results import CHANCE, Results, Round

TRAIT, MASS, TAIL = "persona_log_ratio", "p_ans_any", "tail_perplexity"
PANELS = (
    (TRAIT, "persona log-ratio, nats/token"),
    (TAIL, "tail perplexity under base"),
    (MASS, "mass on valid answers, p_ans_any"),
    ("repetition_share", "share of looping answers"),
    ("scaffold_nats", "scaffold, nats/token"),
    ("neutral_kl_p95", "KL to base on neutral text, p95, nats"),
    ("accuracy", "accuracy, general questions"),
)
SHARES = ("repetition_share", "accuracy")


def draw(results: Results) -> dict[str, bytes]:
    """Every figure by name."""
    return {
        "trajectory": trajectory(results),
        "signals": signals(results),
        "calibration": calibration(results),
        "training": training(results),
    }


def trajectory(results: Results) -> bytes:
    """Trait against coherence: base, prompted, and each round's way over steered to healed."""
    limits = limits_of(results.recipe.evaluation)
    figure, (mass, tail) = new_figure(2, 1, 6.6, sharex=True, heights=(0.7, 1.0))
    obstacles = [
        _trajectory_panel(mass, results, MASS, limits[MASS]),
        _trajectory_panel(tail, results, TAIL, limits[TAIL]),
    ]
    low, _ = mass.get_ylim()
    mass.set_ylim(min(low, limits[MASS] - 0.01), 1.004)
    log_axis(tail, "y")
    tail.invert_yaxis()
    mass.set_ylabel("p_ans_any")
    tail.set_ylabel("tail perplexity under base (log, inverted)")
    tail.set_xlabel("persona log-ratio, nats/token (more of the trait to the right)")
    handles = [
        mark("s", INK, "base"),
        mark("D", PROMPTED, "prompted"),
        mark("o", MUTED, "healed, with its round"),
        Line2D([], [], color=MUTED, linewidth=1.6, marker=">", markevery=[1], markersize=5, label="healing moves it"),
        Line2D([], [], color=MUTED, linestyle=DASHES, linewidth=1, label="floor of coherence"),
    ]
    if results.rounds[-1].steered:
        dotted = Line2D([], [], color=MUTED, linestyle=DOTS, linewidth=1.3, label="steering moves it")
        handles += [mark("o", MUTED, "steered, with its round", hollow=True), dotted]
    legend(figure, handles, 4)
    renderer = settle(figure).get_renderer()
    for axis, name, lines in zip((mass, tail), (MASS, TAIL), obstacles, strict=True):
        place_labels(axis, _trajectory_labels(results, name), lines, renderer)
    return png(figure)


def _trajectory_panel(axis: Axes, results: Results, name: str, floor: float) -> list[Segment]:
    """One panel; the lines in it, which its labels should keep off."""
    lines = draw_point(axis, results.base.values[TRAIT], results.base.values[name], "s", INK)
    lines += draw_point(axis, results.prompted.values[TRAIT], results.prompted.values[name], "D", PROMPTED)
    before = results.base
    for entry, colour in zip(results.rounds, round_colours(len(results.rounds)), strict=True):
        way_there = [before, *([entry.steered] if entry.steered else []), entry.healed]
        stops = [(stage.values[TRAIT].value, stage.values[name].value) for stage in way_there]
        for (start, end), healing in zip(pairwise(stops), (False, True)[-len(stops) + 1 :], strict=True):
            if not all(math.isfinite(number) for number in (*start, *end)):
                continue
            style = {"arrowstyle": "->", "linewidth": 1.6} if healing else {"arrowstyle": "-", "linestyle": DOTS}
            way = {"color": colour, "linewidth": 1.3, "shrinkA": 4, "shrinkB": 5, "mutation_scale": 10} | style
            axis.annotate("", end, start, arrowprops=way, zorder=2)
            lines.append((start, end))
        if entry.steered is not None:
            lines += draw_point(axis, entry.steered.values[TRAIT], entry.steered.values[name], "o", colour, hollow=True)
        lines += draw_point(axis, entry.healed.values[TRAIT], entry.healed.values[name], "o", colour)
        before = entry.healed
    axis.axhline(floor, color=MUTED, linestyle=DASHES, linewidth=1, zorder=1)
    return lines


def _trajectory_labels(results: Results, name: str) -> list[Label]:
    stages = [("base", results.base, INK), ("prompted", results.prompted, PROMPTED)]
    for entry, colour in zip(results.rounds, round_colours(len(results.rounds)), strict=True):
        measured = [stage for stage in (entry.steered, entry.healed) if stage is not None]
        stages += [(str(entry.number), stage, colour) for stage in measured]
    labels = [Label(s.values[TRAIT].value, s.values[name].value, text, colour) for text, s, colour in stages]
    return [label for label in labels if math.isfinite(label.x) and math.isfinite(label.y)]


def signals(results: Results) -> bytes:
    """Each signal by round, with its interval: steered and healed against base and prompted."""
    figure, axes = new_figure(4, 2, 9.2)
    for axis, (name, title) in zip(axes, PANELS, strict=False):
        axis.set_title(title, fontsize=10, loc="left", color=INK)
        prompted = results.prompted.values[name]
        if drawable(prompted):
            axis.axhspan(prompted.low, prompted.high, color=PROMPTED, alpha=0.10, linewidth=0)
            axis.axhline(prompted.value, color=PROMPTED, linewidth=1.2)
        _series(axis, [(r.number, r.steered.values[name]) for r in results.rounds if r.steered], 0.09, hollow=True)
        healed = [(r.number, r.healed.values[name]) for r in results.rounds]
        _series(axis, [(0, results.base.values[name]), *healed], -0.09, hollow=False)
        if name == TAIL:
            log_axis(axis, "y")
        elif name in SHARES:
            axis.set_ylim(-0.05, 1.05)
        if name == "accuracy":
            axis.axhline(CHANCE, color=MUTED, linestyle=DASHES, linewidth=1)
        axis.set_xticks(range(len(results.rounds) + 1), ["base", *(str(r.number) for r in results.rounds)])
        axis.set_xlim(-0.4, len(results.rounds) + 0.4)
    axes[-1].set_axis_off()
    handles = [
        Line2D([], [], color=INK, marker="o", markersize=6, label="healed (base at the left)"),
        *([mark("o", INK, "steered at c*", hollow=True)] if results.rounds[-1].steered else []),
        Line2D([], [], color=PROMPTED, linewidth=1.2, label="prompted, with interval"),
        Line2D([], [], color=MUTED, linestyle=DASHES, linewidth=1, label="chance (four options)"),
    ]
    axes[-1].legend(handles=handles, loc="center left", frameon=False, fontsize=10, labelcolor=INK)
    return png(figure)


def _series(axis: Axes, points: Iterable[tuple[int, Estimate]], shift: float, hollow: bool) -> None:
    """One stage over the rounds."""
    shown = [(x + shift, entry) for x, entry in points if drawable(entry)]
    if not shown:
        return
    x = [place for place, _ in shown]
    y = [entry.value for _, entry in shown]
    axis.errorbar(
        x,
        y,
        yerr=np.array([arms(entry) for _, entry in shown]).T,
        color=INK,
        marker="o",
        markersize=6,
        markerfacecolor="white" if hollow else INK,
        linestyle="none" if hollow else "-",
        linewidth=1.3,
        elinewidth=0.9,
        zorder=3,
    )


def calibration(results: Results) -> bytes:
    """p95 and p50 of the per-token KL against the coefficient, the target, `c_star`, and the audit."""
    figure, axes = new_figure(1, 1, 5.0)
    axis = axes[0]
    settings = results.recipe.calibration
    axis.axhspan(
        max(settings.target - settings.tolerance, settings.target * 0.01),
        settings.target + settings.tolerance,
        color=MUTED,
        alpha=0.13,
        linewidth=0,
    )
    axis.axhline(settings.target, color=MUTED, linestyle=DASHES, linewidth=1)
    for entry, colour in zip(results.rounds, round_colours(len(results.rounds)), strict=True):
        found = entry.calibration
        history = sorted(found["history"], key=lambda point: point["c"])
        for statistic, line, marker, width in (("p95", "-", "o", 1.5), ("p50", ":", ".", 1.1)):
            points = [(p["c"], p[statistic]) for p in history if p["c"] > 0 and 0 < p[statistic] < math.inf]
            x, y = [c for c, _ in points], [kl for _, kl in points]
            axis.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=5, linewidth=width)
        if found["c_star"] > 0 and 0 < found["value"] < math.inf:
            axis.plot(
                [found["c_star"]], [found["value"]], color=colour, marker="*", markersize=15, markeredgecolor="white",
                markeredgewidth=0.8, linestyle="none", zorder=4,
            )  # fmt: skip
        if found["c_star"] > 0 and found["audit"] is not None and 0 < found["audit"]["p95"] < math.inf:
            axis.plot(
                [found["c_star"]], [found["audit"]["p95"]], color=colour, marker="D", markersize=7,
                markerfacecolor="white", markeredgewidth=1.4, linestyle="none", zorder=4,
            )  # fmt: skip
    log_axis(axis, "x")
    log_axis(axis, "y")
    axis.set_xlabel("coefficient c (log)")
    axis.set_ylabel("KL(on || off) per token, nats (log)")
    colours = zip(results.rounds, round_colours(len(results.rounds)), strict=True)
    keys = [Line2D([], [], color=colour, linewidth=3, label=f"round {entry.number}") for entry, colour in colours]
    columns = 1 + len(keys) // 5
    box = {"facecolor": "white", "edgecolor": "none", "framealpha": 0.85}
    axis.legend(handles=keys, loc="lower right", ncols=columns, fontsize=9, labelcolor=INK, **box)
    handles = [
        Line2D([], [], color=MUTED, marker="o", markersize=5, linewidth=1.5, label="95th percentile"),
        Line2D([], [], color=MUTED, marker=".", markersize=5, linestyle=":", label="median"),
        Line2D([], [], color=MUTED, linestyle=DASHES, linewidth=1, label="target ± tolerance"),
        Line2D([], [], color=MUTED, marker="*", markersize=12, linestyle="none", label="c*"),
        mark("D", MUTED, "audit at c*, held-out prompts", hollow=True),
    ]
    legend(figure, handles, 3)
    return png(figure)


def training(results: Results) -> bytes:
    """CE, D and the share of completions whose barrier is on, round after round."""
    figure, axes = new_figure(3, 1, 7.0, sharex=True, heights=(1.2, 1.2, 0.8))
    loss, divergence, barrier = axes
    epochs = results.recipe.heal.epochs
    for entry, colour in zip(results.rounds, round_colours(len(results.rounds)), strict=True):
        steps = [log for log in entry.training if "train/ce" in log]
        checks = [log for log in entry.training if "eval/ce" in log]
        for axis, name in ((loss, "ce"), (divergence, "D_mean"), (barrier, "barrier_on")):
            x = _places(entry, steps, epochs)
            axis.plot(x, _column(steps, f"train/{name}"), color=colour, linewidth=0.9, alpha=0.4)
            axis.plot(*_epoch_means(entry, steps, f"train/{name}", epochs), color=colour, linewidth=2.2)
            axis.plot(
                _places(entry, checks, epochs),
                _column(checks, f"eval/{name}"),
                color=colour,
                marker="D",
                markersize=6,
                markerfacecolor="white",
                markeredgewidth=1.3,
                linestyle="none",
                zorder=4,
            )
        divergence.plot(
            _places(entry, steps, epochs), _column(steps, "train/D_max"), color=colour, linewidth=0.9, linestyle=":"
        )
    if results.recipe.heal.barrier.divergence != "none":
        divergence.axhline(results.recipe.heal.barrier.tau, color=MUTED, linestyle=DASHES, linewidth=1)
    loss.set_ylabel("CE, nats/token")
    divergence.set_ylabel("D, nats")
    barrier.set_ylabel("barrier on, share")
    barrier.set_ylim(-0.05, 1.05)
    divergence.set_ylim(bottom=-0.03 * divergence.get_ylim()[1])
    count = len(results.rounds)
    for axis in axes:
        axis.grid(False, axis="x")
        axis.tick_params(axis="x", length=0)
        for edge in range(1, count):
            axis.axvline(edge, color=MUTED, linewidth=0.6, alpha=0.5)
    barrier.set_xlim(-0.015 * count, 1.015 * count)
    barrier.set_xticks([entry.number - 0.5 for entry in results.rounds], [f"round {r.number}" for r in results.rounds])
    handles = [
        Line2D([], [], color=MUTED, linewidth=0.9, alpha=0.5, label="step"),
        Line2D([], [], color=MUTED, linewidth=2.2, label="mean of an epoch"),
        mark("D", MUTED, "validation", hollow=True),
        Line2D([], [], color=MUTED, linestyle=":", linewidth=1, label="largest D of a step"),
        Line2D([], [], color=MUTED, linestyle=DASHES, linewidth=1, label="tau"),
    ]
    legend(figure, handles, 5)
    return png(figure)


def _places(entry: Round, logs: Sequence[dict[str, float]], epochs: int) -> list[float]:
    """Where logs stand on an axis that counts rounds: round 1 takes up 0 to 1."""
    return [entry.number - 1 + log["epoch"] / epochs for log in logs]


def _column(logs: Sequence[dict[str, float]], name: str) -> list[float]:
    return [log[name] for log in logs]


def _epoch_means(
    entry: Round, steps: Sequence[dict[str, float]], name: str, epochs: int
) -> tuple[list[float], list[float]]:
    """The mean over each epoch's steps, one level line an epoch."""
    x: list[float] = []
    y: list[float] = []
    for epoch in range(epochs):
        values = [log[name] for log in steps if epoch < log["epoch"] <= epoch + 1 + 1e-9]
        if values:
            x += [entry.number - 1 + epoch / epochs, entry.number - 1 + (epoch + 1) / epochs, math.nan]
            y += [sum(values) / len(values)] * 2 + [math.nan]
    return x, y
