"""Figures of rollouts: KL token by token, absolute and relative to its own beginning, and survival over tokens."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from heal.report.drawing import COLOURS, DASHES, DOTS, INK, MUTED, legend, mark, new_figure, png, round_colours, settle
from heal.studies.survival.curves import Curve, survival
from heal.studies.survival.rollouts import Trajectory, by_alpha
from heal.studies.survival.table import half_life

ALIVE_COLOUR, DEAD_COLOUR = COLOURS[:2]

BEGINNING = 20  # tokens whose p95 normalises a trajectory
LINEAR = 1e-3  # below it the axis of KL is linear, so that an exact zero can be drawn

_WINDOWS = 32  # windows along the longest rollout that the median is taken over
_LINE = 11.5  # points between the labels of two curves


def draw(trajectories: Sequence[Trajectory], target: float | None = None) -> dict[str, bytes]:
    """Every figure by name, PNG: `kl`, `kl_normalised` and `survival`.

    Args:
        trajectories: rollouts at any alphas.
        target: the p95 of KL that the dose was calibrated to, nats; drawn where it is given.
    """
    return {
        "kl": divergence(trajectories, target),
        "kl_normalised": normalised_divergence(trajectories),
        "survival": survival_curves({alpha: survival(group) for alpha, group in by_alpha(trajectories).items()}),
    }


def divergence(trajectories: Sequence[Trajectory], target: float | None = None) -> bytes:
    """`KL(on || off)` of every token, nats, one panel per alpha and one thin line per rollout.

    The axis is logarithmic, and linear below LINEAR. Tokens after a death have another colour. The median is taken
    over the rollouts that reached the token (in long rollouts, over a few tokens around it). A KL that is not finite
    leaves a gap.
    """
    lines = {
        alpha: [(trajectory, np.array(trajectory.kl)) for trajectory in group]
        for alpha, group in by_alpha(trajectories).items()
    }
    notes = {
        alpha: "exactly 0" for alpha, group in lines.items() if any(map(len, (kl_N for _, kl_N in group)))
        and not any(kl_N.any() for _, kl_N in group)
    }  # fmt: skip
    return png(_panels(lines, notes, "KL(on || off) per token, nats", target, "target of the dose"))


def normalised_divergence(trajectories: Sequence[Trajectory]) -> bytes:
    """The same, trajectory rollout divided by its own p95 over the first BEGINNING tokens, with a line at 1.

    A rollout whose p95 there is 0 or not finite is left out, and its panel says how many are.
    """
    lines: dict[float, list[tuple[Trajectory, np.ndarray]]] = {}
    notes: dict[float, str] = {}
    for alpha, group in by_alpha(trajectories).items():
        scaled = [(trajectory, beginning(trajectory)) for trajectory in group]
        lines[alpha] = [(trajectory, np.array(trajectory.kl) / p95) for trajectory, p95 in scaled if 0 < p95 < math.inf]
        left_out = len(group) - len(lines[alpha])
        if left_out:
            zero = sum(p95 == 0 for _, p95 in scaled)
            reason = "p95 0" if zero == left_out else "p95 0 or not finite"
            notes[alpha] = f"{left_out} of {len(group)} left out ({reason})"
    label = f"KL / own p95 of the first {BEGINNING}"
    return png(_panels(lines, notes, label, 1.0, f"p95 of its first {BEGINNING} tokens"))


def beginning(trajectory: Trajectory) -> float:
    """p95 of the KL of a rollout's first BEGINNING tokens, nats; NaN if one is not finite, or there is none."""
    first_N = np.array(trajectory.kl[:BEGINNING])
    return float(np.quantile(first_N, 0.95)) if len(first_N) and np.isfinite(first_N).all() else math.nan


def _panels(
    lines: Mapping[float, Sequence[tuple[Trajectory, np.ndarray]]],
    notes: Mapping[float, str],
    label: str,
    level: float | None,
    level_label: str,
) -> Figure:
    """One panel per alpha, all with the same axes."""
    columns = min(2, len(lines))
    height = -(-len(lines) // columns)
    figure, axes = new_figure(height, columns, max(3.4, 1.0 + 1.75 * height))
    values = [kl_N[np.isfinite(kl_N)] for group in lines.values() for _, kl_N in group]
    top = max([LINEAR * 10, level or 0.0, *(kl_N.max() for kl_N in values if len(kl_N))])
    longest = max([1, *(len(kl_N) for group in lines.values() for _, kl_N in group)])
    for axis in axes[len(lines) :]:
        axis.set_axis_off()
    window = 1 + 2 * (longest // (2 * _WINDOWS))
    for place, (axis, (alpha, group)) in enumerate(zip(axes, lines.items(), strict=False)):
        for trajectory, kl_N in group:
            _draw_line(axis, trajectory, kl_N, min(0.6, 0.25 + 20 / longest))
        _draw_median(axis, [kl_N for _, kl_N in group], window)
        if level is not None:
            axis.axhline(level, color=MUTED, linestyle=DASHES, linewidth=1, zorder=1)
        _kl_axis(axis, top)
        axis.set_xlim(0, longest * 1.02)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        dead = sum(trajectory.death is not None for trajectory, _ in group)
        parts = [f"\N{GREEK SMALL LETTER ALPHA} = {alpha:g}" + ("" if alpha else " (off)")]
        parts += [f"{dead} of {len(group)} dead"] if group else []
        parts += [notes[alpha]] if alpha in notes else []
        axis.set_title(", ".join(parts), fontsize=9, loc="left", color=INK)
        axis.tick_params(labelleft=place % columns == 0, labelbottom=place + columns >= len(lines), labelsize=8)
    figure.supylabel(label, fontsize=10, color=INK)
    figure.supxlabel("token", fontsize=10, color=INK)
    handles = [
        Line2D([], [], color=ALIVE_COLOUR, linewidth=1.2, label="alive"),
        Line2D([], [], color=DEAD_COLOUR, linewidth=1.2, label="dead"),
        mark("x", DEAD_COLOUR, "death"),
        Line2D(
            [],
            [],
            color=INK,
            linewidth=2,
            label="median of those running" + (f", over {window} tokens" if window > 1 else ""),
        ),
        mark("|", INK, "end of turn"),
    ]
    if level is not None:
        handles.append(Line2D([], [], color=MUTED, linestyle=DASHES, linewidth=1, label=level_label))
    legend(figure, handles, 3)
    return figure


def _draw_line(axis: Axes, trajectory: Trajectory, kl_N: np.ndarray, width: float) -> None:
    """One rollout: token `t` at `t`, in two colours if it died, a tick where its turn ended."""
    token_N = np.arange(1, len(kl_N) + 1)
    death = len(kl_N) if trajectory.death is None else trajectory.death
    look: dict[str, Any] = {"linewidth": width, "alpha": 0.55, "zorder": 2}
    axis.plot(token_N[:death], kl_N[:death], color=ALIVE_COLOUR, **look)
    start = max(death - 1, 0)
    axis.plot(token_N[start:], kl_N[start:], color=DEAD_COLOUR, **look)
    if trajectory.death is not None:
        height = kl_N[start] if start < len(kl_N) and math.isfinite(kl_N[start]) else 0.0
        axis.plot([death], [height], marker="x", markersize=4.5, markeredgewidth=1.2, color=DEAD_COLOUR, zorder=5)
    if trajectory.ended and len(kl_N):
        colour = ALIVE_COLOUR if trajectory.death is None else DEAD_COLOUR
        axis.plot(token_N[-1:], kl_N[-1:], marker="|", markersize=8, markeredgewidth=1.4, color=colour, zorder=5)


def _draw_median(axis: Axes, lines: Sequence[np.ndarray], window: int) -> None:
    """The median over the rollouts that reached a token, pooled over `window` tokens around it; finite values only."""
    longest = max([0, *map(len, lines)])
    medians = []
    for token in range(longest):
        near = slice(max(0, token - window // 2), token + window // 2 + 1)
        near_N = np.concatenate([kl_N[near] for kl_N in lines if token < len(kl_N)])
        near_N = near_N[np.isfinite(near_N)]
        medians.append(float(np.median(near_N)) if len(near_N) else math.nan)
    axis.plot(np.arange(1, longest + 1), medians, color=INK, linewidth=1.4, zorder=4)


def _kl_axis(axis: Axes, top: float) -> None:
    """Logarithmic above LINEAR and linear below, from 0 to just over `top`, ticks at 0 and at powers of ten."""
    axis.set_yscale("symlog", linthresh=LINEAR, linscale=0.4)
    axis.set_ylim(-LINEAR * 0.25, top * 1.6)
    powers = range(round(math.log10(LINEAR)), math.floor(math.log10(top * 1.6)) + 1)
    axis.yaxis.set_major_locator(FixedLocator([0.0, *(10.0**power for power in powers)]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def survival_curves(curves: Mapping[float, Curve]) -> bytes:
    """Kaplan-Meier curves with their 95 % bands, one per alpha, the half-life beside each.

    Lines of smaller alphas are wider, so that lines that coincide can be distinguished.
    """
    figure, (axis,) = new_figure(1, 1, 4.4)
    horizon = max([1.0, *(curve.times[-1] for curve in curves.values())])
    colours = dict(zip(curves, round_colours(len(curves)), strict=True))
    widths = np.linspace(4.2 if len(curves) > 2 else 2.0, 1.2, len(curves))
    for (alpha, curve), width in zip(curves.items(), widths, strict=True):
        # Death is final: a curve that has reached 0 stays there.
        last = [] if curve.survival[-1] > 0 else [horizon]
        times, shares = [0.0, *curve.times, *last], [1.0, *curve.survival, *curve.survival[-1:] * len(last)]
        _draw_band(axis, curve, colours[alpha])
        axis.step(times, shares, where="post", color=colours[alpha], linewidth=width, zorder=3)
        ticks = sorted(set(curve.censored))
        axis.plot(
            ticks, [curve.at(time) for time in ticks], linestyle="none", marker="|", markersize=9, markeredgewidth=1.2,
            color=colours[alpha], zorder=4,
        )  # fmt: skip
    axis.set_ylim(-0.04, 1.04)
    axis.set_xlim(0, horizon * 1.01)
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axis.set_xlabel("token")
    axis.set_ylabel("fraction of rollouts alive (Kaplan-Meier)")
    handles = [
        mark("|", INK, "censored: ended, or out of tokens"),
        Line2D([], [], color=MUTED, linewidth=7, alpha=0.25, label="95 % log-log band"),
    ]
    legend(figure, handles, 2)
    _direct_labels(figure, axis, curves, colours, horizon)
    return png(figure)


def _draw_band(axis: Axes, curve: Curve, colour: Any) -> None:
    """The band as steps from each time to the next, where it exists."""
    time_N = np.repeat(curve.times, 2)[1:]
    low_N, high_N = (np.repeat(edge, 2)[:-1] for edge in (curve.low, curve.high))
    axis.fill_between(time_N, low_N, high_N, color=colour, alpha=0.08, linewidth=0, zorder=1)
    for edge_N in (low_N, high_N):
        axis.plot(time_N, edge_N, color=colour, alpha=0.5, linewidth=0.6, zorder=2)


def _direct_labels(
    figure: Figure, axis: Axes, curves: Mapping[float, Curve], colours: Mapping[float, Any], horizon: float
) -> None:
    """Alpha and half-life to the right of each curve's end, moved apart where they would overlap."""
    ends = {alpha: curve.survival[-1] for alpha, curve in curves.items()}
    order = sorted(curves, key=lambda alpha: (-ends[alpha], alpha))
    texts = [
        axis.text(
            1.05, ends[alpha], f"\N{GREEK SMALL LETTER ALPHA} {alpha:g}, half-life {half_life(curves[alpha].median)}",
            transform=axis.get_yaxis_transform(), fontsize=9, color=colours[alpha], va="center_baseline",
        )
        for alpha in order
    ]  # fmt: skip
    renderer = settle(figure).get_renderer()
    low, high = axis.get_ylim()
    height = axis.get_window_extent(renderer).height / renderer.points_to_pixels(1.0)
    places = apart([ends[alpha] for alpha in order], _LINE * (high - low) / height, low)
    for alpha, text, place in zip(order, texts, places, strict=True):
        text.set_y(place)
        look: dict[str, Any] = {"color": colours[alpha], "linewidth": 0.7, "clip_on": False}
        axis.plot([1.005, 1.04], [ends[alpha], place], transform=axis.get_yaxis_transform(), **look)
        if ends[alpha] > 0:
            axis.plot([curves[alpha].times[-1], horizon], [ends[alpha]] * 2, linestyle=DOTS, **look)


def apart(heights: Sequence[float], step: float, low: float) -> list[float]:
    """Places for labels near the descending `heights`, at least `step` apart and, room permitting, not below `low`."""
    places: list[float] = []
    for height in heights:
        places.append(min(height, places[-1] - step) if places else height)
    floor = low
    for index in reversed(range(len(places))):
        places[index] = max(places[index], floor)
        floor = places[index] + step
    return places
