"""The figure of a run's way: the trait against the coherence margin, and what binds it, round by round."""

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from heal.evaluation.metrics import Summary
from heal.evaluation.signal import TRAIT, signals
from heal.evaluation.stats import Estimate
from heal.report.drawing import (
    DOTS,
    INK,
    MUTED,
    NARROW,
    PAST,
    PROMPTED,
    WIDTH,
    draw_point,
    drawable,
    legend,
    mark,
    new_figure,
    png,
    round_colours,
    settle,
)
from heal.report.headline import term
from heal.report.labels import Label, Segment, place_labels
from heal.report.results import Results
from heal.report.signals import binding, margin


@dataclass(frozen=True)
class Point:
    """A stage in the figure; `label` says which it is and, where that is not base, which signal binds its margin."""

    label: str
    marker: str
    colour: Any
    trait: Estimate | None
    margin: Estimate
    hollow: bool = False
    best: bool = False

    @property
    def place(self) -> tuple[float, float] | None:
        """None where it has none."""
        return (self.trait.value, self.margin.value) if drawable(self.trait) and drawable(self.margin) else None


def trajectory(results: Results, width: float = WIDTH) -> bytes:
    """Trait against coherence margin: base and prompted for reference, each round's way over steered to healed."""
    wide = width > NARROW
    points = _points(results)
    figure, (axis,) = new_figure(1, 1, 5.2 if wide else 4.9, width=width)
    lines = _draw(axis, points)
    low, high = axis.get_ylim()
    low, high = min(low, -0.25), max(high, 1.12)
    axis.axhspan(low, 0, color=PAST, alpha=0.13, linewidth=0)
    axis.axhline(0, color=PAST, linewidth=1)
    axis.set_ylim(low, high)
    axis.margins(x=0.12)
    axis.set_ylabel("coherence margin (1 as at base)")
    axis.set_xlabel(f"{signals()[TRAIT].note if wide else 'trait, nats/token'} (more to the right)")
    legend(figure, _handles(results), 3 if wide else 2)
    renderer = settle(figure).get_renderer()
    labels = [Label(*point.place, point.label, point.colour) for point in points if point.place and point.label]
    place_labels(axis, labels, lines, renderer, 8.5 if wide else 7.5)
    return png(figure)


def _points(results: Results) -> list[Point]:
    """Base and prompted, then each round's steered (where it was measured) and healed."""

    def point(name: str, marker: str, colour: Any, stage: Summary, hollow: bool = False, best: bool = False) -> Point:
        least = binding(results, stage)
        bound = f": {term(least.worst)}" if least is not None and least.margin < 1 and not hollow else ""
        return Point(name + bound, marker, colour, stage.get(TRAIT), margin(results, stage), hollow, best)

    points = [point("base", "s", INK, results.base), point("prompted", "D", PROMPTED, results.prompted)]
    for finished, colour in zip(results.rounds, round_colours(len(results.rounds)), strict=True):
        if finished.steered is not None:
            points.append(point("", "o", colour, finished.steered, hollow=True))
        best = results.best is not None and finished is results.shown
        points.append(point(str(finished.number), "o", colour, finished.healed, best=best))
    return points


def _draw(axis: Axes, points: list[Point]) -> list[Segment]:
    """The points and the ways between them; the lines in it, which labels should keep off."""
    lines: list[Segment] = []
    for point in points:
        lines += draw_point(axis, point.trait, point.margin, point.marker, point.colour, point.hollow)
        if point.best and point.place is not None:
            axis.plot(*point.place, marker="o", markersize=15, color="none", markeredgecolor=INK, markeredgewidth=1.6)
    start = points[0].place
    for point in points[2:]:
        end = point.place
        if start is not None and end is not None:
            _draw_way(axis, start, end, point)
            lines.append((start, end))
        start = end
    return lines


def _draw_way(axis: Axes, start: tuple[float, float], end: tuple[float, float], point: Point) -> None:
    """Steering is a dotted line, healing an arrow."""
    style: dict[str, Any] = {"color": point.colour, "shrinkA": 4, "shrinkB": 5, "mutation_scale": 10, "alpha": 0.7}
    if point.hollow:
        style |= {"arrowstyle": "-", "linestyle": DOTS, "linewidth": 1.2}
    else:
        style |= {"arrowstyle": "->", "linewidth": 1.4}
    axis.annotate("", end, start, arrowprops=style, zorder=2)


def _handles(results: Results) -> list[Line2D]:
    handles = [
        mark("s", INK, "base"),
        mark("D", PROMPTED, "prompted"),
        mark("o", MUTED, "healed: what binds it"),
    ]
    if results.last.steered is not None:
        handles.append(mark("o", MUTED, "steered", hollow=True))
    if results.best is not None:
        ring: dict[str, Any] = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.6}
        handles.append(Line2D([], [], color=INK, linestyle="none", label="best round", **ring))
    return [*handles, mark("s", PAST, "past a limit")]
