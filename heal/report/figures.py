"""The report's figures as PNG bytes. Drawn through matplotlib's objects: no pyplot, no global state.

Colours: rounds run from dark to light along one perceptually uniform map, so their order survives
grey printing and colour blindness; no text of the user or the model is drawn.
"""

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from heal.evaluation.stats import Estimate
from heal.report.labels import Label, Segment, place_labels
from heal.report.results import Results, Round

WIDTH = 7.0  # inches
DPI = 180
INK, MUTED, GRID = "#1f2328", "#5b626b", "#e7e8ea"
PROMPTED = "#00796b"
# Ticks within a decade, by the span of the axis.
TICKS = (
    (1.6, (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.2, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0)),
    (5.0, (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0)),
    (20.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    (300.0, (1.0, 2.0, 5.0)),
)
DASHES, DOTS = (0, (5, 3)), (0, (1.2, 1.6))
TRAIT, MASS, TAIL = "persona_log_ratio", "p_ans_any", "tail_perplexity"
PANELS = (
    (TRAIT, "persona log-ratio, nats/token"),
    (TAIL, "tail perplexity under base"),
    (MASS, "mass on valid answers, p_ans_any"),
    ("repetition_share", "share of looping answers"),
    ("accuracy", "accuracy, general questions"),
)
SHARES = ("repetition_share", "accuracy")
CHANCE = 0.25  # of a general question


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
    limits = results.recipe.evaluation
    figure, (mass, tail) = _figure(2, 1, 6.8, sharex=True, heights=(0.75, 1.0))
    obstacles = [
        _trajectory_panel(mass, results, MASS, limits.min_p_ans_any),
        _trajectory_panel(tail, results, TAIL, limits.max_tail_perplexity),
    ]
    low, _ = mass.get_ylim()
    mass.set_ylim(min(low, limits.min_p_ans_any - 0.01), 1.004)
    _log_axis(tail, "y")
    tail.invert_yaxis()
    mass.set_ylabel("p_ans_any")
    tail.set_ylabel("tail perplexity under base (log, inverted)")
    tail.set_xlabel("persona log-ratio, nats/token (more of the trait to the right)")
    handles = [
        _mark("s", INK, "base"),
        _mark("D", PROMPTED, "prompted"),
        _mark("o", MUTED, "steered at c* (number: round)", hollow=True),
        _mark("o", MUTED, "healed (number: round)"),
        Line2D([], [], color=MUTED, linestyle=DOTS, linewidth=1.3, label="steering moves it"),
        Line2D([], [], color=MUTED, linewidth=1.6, marker=">", markevery=[1], markersize=5, label="healing moves it"),
        Line2D([], [], color=MUTED, linestyle=DASHES, linewidth=1, label="floor of coherence"),
    ]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=4,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        columnspacing=1.4,
        handlelength=1.8,
    )
    renderer = _settled(figure).get_renderer()
    for axis, name, lines in zip((mass, tail), (MASS, TAIL), obstacles, strict=True):
        place_labels(axis, _trajectory_labels(results, name), lines, renderer)
    return _png(figure)


def _trajectory_panel(axis: Axes, results: Results, name: str, floor: float) -> list[Segment]:
    """One panel; the lines in it, which its labels should keep off."""
    lines = _point(axis, results.base.values[TRAIT], results.base.values[name], "s", INK)
    lines += _point(axis, results.prompted.values[TRAIT], results.prompted.values[name], "D", PROMPTED)
    before = results.base
    for entry, colour in zip(results.rounds, round_colours(len(results.rounds)), strict=True):
        x, y = (
            [stage.values[signal].value for stage in (before, entry.steered, entry.healed)] for signal in (TRAIT, name)
        )
        if all(math.isfinite(number) for number in (*x, *y)):
            axis.plot(x[:2], y[:2], color=colour, linestyle=DOTS, linewidth=1.3, zorder=2)
            arrow = {"arrowstyle": "->", "color": colour, "linewidth": 1.6}
            arrow |= {"shrinkA": 4, "shrinkB": 5, "mutation_scale": 10}
            axis.annotate("", (x[2], y[2]), (x[1], y[1]), arrowprops=arrow, zorder=2)
            lines += [((x[0], y[0]), (x[1], y[1])), ((x[1], y[1]), (x[2], y[2]))]
        lines += _point(axis, entry.steered.values[TRAIT], entry.steered.values[name], "o", colour, hollow=True)
        lines += _point(axis, entry.healed.values[TRAIT], entry.healed.values[name], "o", colour)
        before = entry.healed
    axis.axhline(floor, color=MUTED, linestyle=DASHES, linewidth=1, zorder=1)
    return lines


def _trajectory_labels(results: Results, name: str) -> list[Label]:
    stages = [("base", results.base, INK), ("prompted", results.prompted, PROMPTED)]
    for entry, colour in zip(results.rounds, round_colours(len(results.rounds)), strict=True):
        stages += [(str(entry.number), entry.steered, colour), (str(entry.number), entry.healed, colour)]
    labels = [Label(s.values[TRAIT].value, s.values[name].value, text, colour) for text, s, colour in stages]
    return [label for label in labels if math.isfinite(label.x) and math.isfinite(label.y)]


def signals(results: Results) -> bytes:
    """Each signal by round, with its interval: steered and healed against base and prompted."""
    figure, axes = _figure(3, 2, 7.4)
    for axis, (name, title) in zip(axes, PANELS, strict=False):
        axis.set_title(title, fontsize=10, loc="left", color=INK)
        prompted = results.prompted.values[name]
        axis.axhspan(prompted.low, prompted.high, color=PROMPTED, alpha=0.10, linewidth=0)
        axis.axhline(prompted.value, color=PROMPTED, linewidth=1.2)
        _series(axis, [(r.number, r.steered.values[name]) for r in results.rounds], 0.09, hollow=True)
        healed = [(r.number, r.healed.values[name]) for r in results.rounds]
        _series(axis, [(0, results.base.values[name]), *healed], -0.09, hollow=False)
        if name == TAIL:
            _log_axis(axis, "y")
        elif name in SHARES:
            axis.set_ylim(-0.05, 1.05)
        if name == "accuracy":
            axis.axhline(CHANCE, color=MUTED, linestyle=DASHES, linewidth=1)
        axis.set_xticks(range(len(results.rounds) + 1), ["base", *(str(r.number) for r in results.rounds)])
        axis.set_xlim(-0.4, len(results.rounds) + 0.4)
    axes[-1].set_axis_off()
    handles = [
        Line2D([], [], color=INK, marker="o", markersize=6, label="healed (base at the left)"),
        _mark("o", INK, "steered at c*", hollow=True),
        Line2D([], [], color=PROMPTED, linewidth=1.2, label="prompted, with interval"),
        Line2D([], [], color=MUTED, linestyle=DASHES, linewidth=1, label="chance (four options)"),
    ]
    axes[-1].legend(handles=handles, loc="center left", frameon=False, fontsize=10, labelcolor=INK)
    return _png(figure)


def _series(axis: Axes, points: Iterable[tuple[int, Estimate]], shift: float, hollow: bool) -> None:
    """One stage over the rounds."""
    shown = [(x + shift, entry) for x, entry in points if _drawable(entry)]
    if not shown:
        return
    x = [place for place, _ in shown]
    y = [entry.value for _, entry in shown]
    axis.errorbar(
        x,
        y,
        yerr=np.array([_arms(entry) for _, entry in shown]).T,
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
    figure, axes = _figure(1, 1, 4.6)
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
        for statistic, style in (
            ("p95", {"linestyle": "-", "marker": "o", "markersize": 5, "linewidth": 1.5}),
            ("p50", {"linestyle": ":", "marker": ".", "markersize": 5, "linewidth": 1.1}),
        ):
            points = [(p["c"], p[statistic]) for p in history if 0 < p[statistic] < math.inf]
            axis.plot([c for c, _ in points], [kl for _, kl in points], color=colour, **style)
        if 0 < found["value"] < math.inf:
            axis.plot(
                [found["c_star"]] * 2,
                [found["value"]] * 2,
                color=colour,
                marker="*",
                markersize=15,
                markeredgecolor="white",
                markeredgewidth=0.8,
                linestyle="none",
                zorder=4,
            )
        if found["audit"] is not None and 0 < found["audit"]["p95"] < math.inf:
            axis.plot(
                [found["c_star"]],
                [found["audit"]["p95"]],
                color=colour,
                marker="D",
                markersize=7,
                markerfacecolor="white",
                markeredgewidth=1.4,
                linestyle="none",
                zorder=4,
            )
    _log_axis(axis, "x")
    _log_axis(axis, "y")
    axis.set_xlabel("coefficient c (log)")
    axis.set_ylabel("KL(on || off) per token, nats (log)")
    handles = [
        Line2D([], [], color=colour, linewidth=3, label=f"round {entry.number}")
        for entry, colour in zip(results.rounds, round_colours(len(results.rounds)), strict=True)
    ]
    handles += [
        Line2D([], [], color=MUTED, marker="o", markersize=5, linewidth=1.5, label="95th percentile"),
        Line2D([], [], color=MUTED, marker=".", markersize=5, linestyle=":", label="median"),
        Line2D([], [], color=MUTED, linestyle=DASHES, linewidth=1, label="target ± tolerance"),
        Line2D([], [], color=MUTED, marker="*", markersize=12, linestyle="none", label="c*"),
        _mark("D", MUTED, "audit at c*, held-out prompts", hollow=True),
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, labelcolor=INK)
    return _png(figure)


def training(results: Results) -> bytes:
    """CE, D and the share of completions whose barrier is on, round after round."""
    figure, axes = _figure(3, 1, 7.4, sharex=True, heights=(1.2, 1.2, 0.8))
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
        _mark("D", MUTED, "validation", hollow=True),
        Line2D([], [], color=MUTED, linestyle=":", linewidth=1, label="largest D of a step"),
        Line2D([], [], color=MUTED, linestyle=DASHES, linewidth=1, label="tau"),
    ]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=5,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        columnspacing=1.2,
        handlelength=1.8,
    )
    return _png(figure)


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


def round_colours(count: int) -> list[Any]:
    """One colour a round, dark to light."""
    return [matplotlib.colormaps["plasma"](place) for place in np.linspace(0.05, 0.70, max(count, 1))][:count]


def _figure(
    rows: int, columns: int, height: float, sharex: bool = False, heights: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A white figure with quiet axes, in reading order."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharex=sharex, squeeze=False, height_ratios=heights)
    axes = [axis for line in grid for axis in line]
    for axis in axes:
        axis.grid(True, color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(MUTED)
        axis.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
        axis.xaxis.label.set(color=INK, fontsize=10)
        axis.yaxis.label.set(color=INK, fontsize=10)
        axis.yaxis.set_major_locator(MaxNLocator(5))
    return figure, axes


def _log_axis(axis: Axes, which: Literal["x", "y"]) -> None:
    """Makes an axis with its data already on it logarithmic, with plain round numbers as ticks."""
    axis.set_xscale("log") if which == "x" else axis.set_yscale("log")
    side = axis.xaxis if which == "x" else axis.yaxis
    low, high = sorted(side.get_view_interval())
    steps = next((subs for span, subs in TICKS if high / low < span), (1.0,))
    side.set_major_locator(LogLocator(subs=steps, numticks=20))
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    side.set_minor_locator(NullLocator())
    side.set_minor_formatter(NullFormatter())


def _point(axis: Axes, x: Estimate, y: Estimate, marker: str, colour: Any, hollow: bool = False) -> list[Segment]:
    """A stage with its two intervals, and these as lines; nothing when either value is not finite."""
    if not (_drawable(x) and _drawable(y)):
        return []
    (left, right), (down, up) = _arms(x), _arms(y)
    axis.errorbar(
        [x.value],
        [y.value],
        xerr=[[left], [right]],
        yerr=[[down], [up]],
        fmt="none",
        ecolor=colour,
        elinewidth=0.9,
        alpha=0.35,
        zorder=1,
    )
    axis.plot(
        [x.value],
        [y.value],
        marker=marker,
        markersize=8,
        color=colour,
        linestyle="none",
        markerfacecolor="white" if hollow else colour,
        markeredgewidth=1.6,
        zorder=3,
    )
    across = ((x.value - left, y.value), (x.value + right, y.value))
    return [across, ((x.value, y.value - down), (x.value, y.value + up))]


def _drawable(entry: Estimate) -> bool:
    return math.isfinite(entry.value)


def _arms(entry: Estimate) -> tuple[float, float]:
    """The lengths of the interval's two arms; 0 where an end is not finite."""
    arms = (entry.value - entry.low, entry.high - entry.value)
    return tuple(max(arm, 0.0) if math.isfinite(arm) else 0.0 for arm in arms)  # type: ignore[return-value]


def _mark(marker: str, colour: str, label: str, hollow: bool = False) -> Line2D:
    """A legend's mark."""
    face = "white" if hollow else colour
    return Line2D(
        [],
        [],
        color=colour,
        marker=marker,
        markersize=7,
        markerfacecolor=face,
        markeredgewidth=1.4,
        linestyle="none",
        label=label,
    )


def _settled(figure: Figure) -> FigureCanvasAgg:
    """Draws once and freezes the layout, so that places in pixels hold."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")
    return canvas


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
