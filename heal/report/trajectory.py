"""The figure of a run's way: the trait against coherence, round by round."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from heal.evaluation.metrics import Summary
from heal.evaluation.signal import TRAIT, described, signals
from heal.evaluation.stats import Estimate
from heal.report.drawing import (
    DASHES,
    DOTS,
    INK,
    MUTED,
    PROMPTED,
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
from heal.report.results import Results
from heal.report.signals import limit_at_base, margin


@dataclass(frozen=True)
class Stage:
    """A mark of the figure."""

    label: str
    marker: str
    colour: Any
    signals: Summary
    hollow: bool = False

    @property
    def trait(self) -> Estimate | None:
        return self.signals.get(TRAIT)


@dataclass(frozen=True)
class Panel:
    """One y-axis of the figure.

    Attributes:
        label: of the axis.
        heights: of the stages' marks; None where a stage lacks the signal.
        limit: past which a student is incoherent, if there is such a limit.
        log: whether the axis is logarithmic.
        inverted: whether higher is worse, so that the axis stands upside down.
    """

    label: str
    heights: tuple[Estimate | None, ...]
    limit: float | None
    log: bool = False
    inverted: bool = False


def trajectory(results: Results) -> bytes:
    """Trait against coherence: base, prompted, and each round's way over steered to healed."""
    stages = _stages(results)
    panels = _panels(results, stages)
    ratios = [0.75, *[1.0] * (len(panels) - 1)]
    figure, axes = new_figure(len(panels), 1, 0.9 + 3.2 * sum(ratios), sharex=True, heights=ratios)
    obstacles = [_draw(axis, panel, stages) for axis, panel in zip(axes, panels, strict=True)]
    axes[-1].set_xlabel(f"{signals()[TRAIT].note} (more of the trait to the right)")
    legend(figure, _handles(results), 4)
    renderer = settle(figure).get_renderer()
    for axis, panel, lines in zip(axes, panels, obstacles, strict=True):
        place_labels(axis, _labels(panel, stages), lines, renderer)
    return png(figure)


def _stages(results: Results) -> list[Stage]:
    """Base and prompted, then each round's steered (where it was measured) and healed."""
    stages = [Stage("base", "s", INK, results.base), Stage("prompted", "D", PROMPTED, results.prompted)]
    for finished, colour in zip(results.rounds, round_colours(len(results.rounds)), strict=True):
        if finished.steered is not None:
            stages.append(Stage(str(finished.number), "o", colour, finished.steered, hollow=True))
        stages.append(Stage(str(finished.number), "o", colour, finished.healed))
    return stages


def _panels(results: Results, stages: Sequence[Stage]) -> list[Panel]:
    """The coherence margin, and every signal whose description puts it here."""
    panels = [Panel("coherence margin", tuple(margin(results, stage.signals) for stage in stages), 0.0)]
    for signal in described(results.base):
        if not signal.trajectory:
            continue
        limit = signal.limit
        log, inverted = limit is not None and limit.log, signal.better == "lower"
        notes = [text for text, holds in (("log", log), ("inverted", inverted)) if holds]
        label = signal.term + (f" ({', '.join(notes)})" if notes else "")
        heights = tuple(stage.signals.get(signal.name) for stage in stages)
        panels.append(Panel(label, heights, limit_at_base(results, signal), log, inverted))
    return panels


def _draw(axis: Axes, panel: Panel, stages: Sequence[Stage]) -> list[Segment]:
    """One panel; the lines in it, which its labels should keep off."""
    lines: list[Segment] = []
    for stage, height in zip(stages, panel.heights, strict=True):
        lines += draw_point(axis, stage.trait, height, stage.marker, stage.colour, stage.hollow)
    places = [_place(stage, height) for stage, height in zip(stages, panel.heights, strict=True)]
    start = places[0]
    for stage, end in zip(stages[2:], places[2:], strict=True):
        if start is not None and end is not None:
            _draw_way(axis, start, end, stage)
            lines.append((start, end))
        start = end
    if panel.limit is not None:
        axis.axhline(panel.limit, color=MUTED, linestyle=DASHES, linewidth=1, zorder=1)
    axis.set_ylabel(panel.label)
    if panel.log and axis.get_ylim()[0] > 0:
        log_axis(axis, "y")
    if panel.inverted:
        axis.invert_yaxis()
    return lines


def _draw_way(axis: Axes, start: tuple[float, float], end: tuple[float, float], stage: Stage) -> None:
    """Steering is a dotted line, healing an arrow."""
    style: dict[str, Any] = {"color": stage.colour, "shrinkA": 4, "shrinkB": 5, "mutation_scale": 10}
    if stage.hollow:
        style |= {"arrowstyle": "-", "linestyle": DOTS, "linewidth": 1.3}
    else:
        style |= {"arrowstyle": "->", "linewidth": 1.6}
    axis.annotate("", end, start, arrowprops=style, zorder=2)


def _place(stage: Stage, height: Estimate | None) -> tuple[float, float] | None:
    if not (drawable(stage.trait) and drawable(height)):
        return None
    return stage.trait.value, height.value


def _labels(panel: Panel, stages: Sequence[Stage]) -> list[Label]:
    labels = []
    for stage, height in zip(stages, panel.heights, strict=True):
        place = _place(stage, height)
        if place is not None:
            labels.append(Label(*place, stage.label, stage.colour))
    return labels


def _handles(results: Results) -> list[Line2D]:
    handles = [
        mark("s", INK, "base"),
        mark("D", PROMPTED, "prompted"),
        mark("o", MUTED, "healed, with its round"),
        Line2D([], [], color=MUTED, linewidth=1.6, marker=">", markevery=[1], markersize=5, label="healing"),
        Line2D([], [], color=MUTED, linestyle=DASHES, linewidth=1, label="limit of coherence"),
    ]
    if results.last.steered is not None:
        handles += [
            mark("o", MUTED, "steered, with its round", hollow=True),
            Line2D([], [], color=MUTED, linestyle=DOTS, linewidth=1.3, label="steering"),
        ]
    return handles
