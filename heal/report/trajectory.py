"""The figure of a run's way: the trait against the coherence margin, and what binds it, round by round."""

import math
from dataclasses import dataclass

from heal.evaluation.metrics import Summary
from heal.evaluation.signal import TRAIT, signals
from heal.evaluation.stats import Estimate
from heal.report.canvas import Canvas, Line, Mark, Place, Shape, round_colours
from heal.report.headline import term
from heal.report.labels import Box, Label, Segment, place_labels
from heal.report.plot import DOTS, NARROW, WIDE, Entry, Panel, Scale, arms, drawable, legend, said
from heal.report.results import Results
from heal.report.signals import binding, margin

_HEAD = 6.0  # pixels, of an arrow


@dataclass(frozen=True)
class Point:
    """A stage in the figure.

    Attributes:
        label: which it is and, where that is not base, which signal binds its margin; empty for a steered stage.
        says: what stands under the pointer.
    """

    label: str
    says: str
    shape: Shape
    colour: str
    trait: Estimate | None
    margin: Estimate
    hollow: bool = False
    best: bool = False

    @property
    def short(self) -> str:
        """The label without the signal."""
        return self.label.partition(":")[0]


def trajectory(results: Results, width: float = WIDE) -> Canvas:
    """Trait against coherence margin: base and prompted for reference, each round's way over steered to healed."""
    wide, points = width > NARROW, _points(results)
    canvas = Canvas(width, 500 if wide else 430)
    top = legend(canvas, _entries(results))
    traits = [point.trait for point in points if drawable(point.trait)]
    ends = [end for trait in traits for end in (trait.value - arms(trait)[0], trait.value + arms(trait)[1])]
    margins = [point.margin.value for point in points if drawable(point.margin)]
    x = Scale.around(ends, 0.08)
    y = Scale.around([-0.2, 1.08, *margins], 0.04)
    panel = Panel(canvas, 58, top + 8, width - 12, canvas.height - 44, x, y)
    name = f"{signals()[TRAIT].note if wide else 'trait, nats/token'} (more to the right)"
    panel.axes(x_label=name, y_label="coherence margin (1 as at base)")
    panel.span(panel.y.low, 0, "past", 0.14)
    panel.across(0, "past")
    lines = _draw(panel, points)
    labels = [Label(at, point.label, point.short) for point in points if point.label and (at := _at(panel, point))]
    inside = Box(panel.left, panel.top, panel.right, panel.bottom)
    place_labels(canvas, labels, lines, inside, 12 if wide else 11)
    return canvas


def _points(results: Results) -> list[Point]:
    """Base and prompted, then each round's steered (where it was measured) and healed."""

    def point(name: str, shape: Shape, colour: str, stage: Summary, hollow: bool = False, best: bool = False) -> Point:
        least, trait = binding(results, stage), stage.get(TRAIT)
        bound = f": {term(least.worst)}" if least is not None and least.margin < 1 and not hollow else ""
        is_round = isinstance(name, str) and name.isdigit()
        full = f"round {name}, {'steered' if hollow else 'healed'}" if is_round else name
        says = said(f"{full}{', the best round' if best else ''}: trait", trait) if trait is not None else full
        if least is not None:
            says += f", margin {least.margin:.2f} ({term(least.worst)})".replace("-", "\N{MINUS SIGN}")
        return Point("" if hollow else name + bound, says, shape, colour, trait, margin(results, stage), hollow, best)

    points = [point("base", "square", "ink", results.base), point("prompted", "diamond", "prompted", results.prompted)]
    for finished, colour in zip(results.rounds, round_colours(len(results.rounds)), strict=True):
        number = str(finished.number)
        if finished.steered is not None:
            points.append(point(number, "circle", colour, finished.steered, hollow=True))
        best = results.best is not None and finished is results.shown
        points.append(point(number, "circle", colour, finished.healed, best=best))
    return points


def _at(panel: Panel, point: Point) -> Place | None:
    """The pixel of a stage; None where it has none."""
    if not (drawable(point.trait) and drawable(point.margin)):
        return None
    return panel.at(point.trait.value, point.margin.value)


def _draw(panel: Panel, points: list[Point]) -> list[Segment]:
    """The ways, and the points on top of them; the lines in it, which labels should keep off."""
    lines: list[Segment] = []
    start = _at(panel, points[0])
    for point in points[2:]:
        end = _at(panel, point)
        if start is not None and end is not None:
            _draw_way(panel.canvas, start, end, point)
            lines.append((start, end))
        start = end
    for point in points:
        if (at := _at(panel, point)) is None or point.trait is None:
            continue
        (below, above), level = arms(point.trait), point.margin.value
        left, right = panel.at(point.trait.value - below, level), panel.at(point.trait.value + above, level)
        panel.canvas.add(Line([left, right], point.colour, 1.1, opacity=0.45))
        lines.append((left, right))
        if point.best:
            panel.canvas.add(Mark(at, "circle", "ink", 10, hollow=True, edge=1.7))
        panel.canvas.add(Mark(at, point.shape, point.colour, 5.2, point.hollow, point.says))
    return lines


def _draw_way(canvas: Canvas, start: Place, end: Place, point: Point) -> None:
    """Steering is a dotted line, healing an arrow."""
    length = math.dist(start, end)
    if length < 14:
        return
    (x0, y0), (x1, y1) = (_towards(start, end, 6 / length), _towards(end, start, 8 / length))
    if point.hollow:
        canvas.add(Line([(x0, y0), (x1, y1)], point.colour, 1.4, DOTS, 0.8))
        return
    turn = math.atan2(y1 - y0, x1 - x0)
    head = [(x1 - _HEAD * math.cos(turn + side), y1 - _HEAD * math.sin(turn + side)) for side in (0.5, -0.5)]
    canvas.add(Line([(x0, y0), (x1, y1)], point.colour, 1.6, opacity=0.8))
    canvas.add(Line([head[0], (x1, y1), head[1]], point.colour, 1.6, opacity=0.8))


def _towards(start: Place, end: Place, part: float) -> Place:
    return start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])


def _entries(results: Results) -> list[Entry]:
    entries = [
        Entry("base", "ink", "square"),
        Entry("prompted", "prompted", "diamond"),
        Entry("healed: what binds it", "muted", "circle", radius=5),
    ]
    if results.last.steered is not None:
        entries.append(Entry("steered", "muted", "circle", hollow=True, radius=5))
    if results.best is not None:
        entries.append(Entry("best round", "ink", "circle", hollow=True, radius=7.5))
    return [*entries, Entry("past a limit", "past", "square", radius=5)]
