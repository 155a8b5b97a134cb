"""Axes on a canvas: scales with round ticks, panels, points with intervals, and legends."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from heal.evaluation.stats import Estimate
from heal.report.canvas import Area, Canvas, Line, Mark, Place, Shape, Text, width_of

WIDE, NARROW = 720.0, 345.0  # pixels, for a page and for a telephone
DASHES, DOTS = (5.0, 3.5), (1.5, 3.0)

# Ticks within a decade, by the ratio that the axis spans.
_DECADE = (
    (1.6, (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.2, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0)),
    (5.0, (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0)),
    (20.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    (300.0, (1.0, 2.0, 5.0)),
)


@dataclass(frozen=True)
class Scale:
    """What an axis spans; `inverted`: large values stand at its beginning."""

    low: float
    high: float
    log: bool = False
    inverted: bool = False

    @staticmethod
    def around(values: Iterable[float], room: float = 0.07, log: bool = False, inverted: bool = False) -> "Scale":
        """What holds all finite values (positive ones where it is logarithmic), with some room."""
        found = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        if not found:
            return Scale(0.1 if log else 0.0, 1.0, log, inverted)
        low, high = min(found), max(found)
        if log:
            spare = max(high / low, 1.05) ** room
            return Scale(low / spare, high * spare, True, inverted)
        spare = room * (high - low) or 0.05 * abs(high) or 0.05
        return Scale(low - spare, high + spare, False, inverted)

    def place(self, value: float) -> float:
        """From 0 to 1 along the axis; NaN where a value has no place."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return math.nan
        low, high, value = (math.log(number) if self.log else number for number in (self.low, self.high, value))
        place = min(max((value - low) / (high - low), 0.0), 1.0)
        return 1 - place if self.inverted else place

    def ticks(self, count: int = 4) -> dict[float, str]:
        """Round values with their texts, about `count` of them."""
        if self.log:
            steps = next((subs for span, subs in _DECADE if self.high / self.low < span), (1.0,))
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [step * 10.0**decade for decade in decades for step in steps]
            shown = [value for value in values if self.low <= value <= self.high]
        else:
            rough = (self.high - self.low) / max(count, 1)
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(power * size for size in (1, 2, 2.5, 5, 10) if power * size >= rough * 0.999)
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            shown = [step * k for k in range(first, last + 1)]
        return {value: f"{value:.6g}".replace("-", "\N{MINUS SIGN}") for value in (value + 0.0 for value in shown)}


@dataclass(frozen=True)
class Panel:
    """Axes between pixels `left`, `top`, `right` and `bottom` of a canvas."""

    canvas: Canvas
    left: float
    top: float
    right: float
    bottom: float
    x: Scale
    y: Scale

    def at(self, x: float, y: float) -> Place:
        """The pixel of a point; NaN where it has none."""
        return (
            self.left + (self.right - self.left) * self.x.place(x),
            self.bottom - (self.bottom - self.top) * self.y.place(y),
        )

    def axes(
        self,
        x_ticks: Mapping[float, str] | None = None,
        *,
        x_label: str = "",
        y_label: str = "",
        size: float = 11.0,
        title: Sequence[str] = (),
        colour: str = "ink",
        grid_x: bool = True,
    ) -> None:
        """Grid, ticks and names; the first line of the title is in bold."""
        x_ticks = self.x.ticks(max(2, round((self.right - self.left) / 65))) if x_ticks is None else x_ticks
        y_ticks = self.y.ticks(max(2, round((self.bottom - self.top) / 38)))
        every = math.ceil(len(y_ticks) * (size + 3) / (self.bottom - self.top))  # many decades leave no room for each
        y_ticks = dict(list(y_ticks.items())[::every])
        add = self.canvas.add
        for value, text in x_ticks.items():
            x, _ = self.at(value, self.y.low)
            if grid_x:
                add(Line([(x, self.top), (x, self.bottom)], "grid", 1))
            add(Text((x, self.bottom + size + 4), text, size, "muted", "middle"))
        for value, text in y_ticks.items():
            _, y = self.at(self.x.low, value)
            add(Line([(self.left, y), (self.right, y)], "grid", 1))
            add(Text((self.left - 5, y + size * 0.35), text, size, "muted", "end"))
        add(Line([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)], "muted", 1))
        if x_label:
            middle = (self.left + self.right) / 2
            add(Text((middle, self.bottom + 2 * size + 11), x_label, size + 0.5, "ink", "middle"))
        if y_label:
            gutter = max((width_of(text, size) for text in y_ticks.values()), default=0.0) + 14
            middle = (self.top + self.bottom) / 2
            add(Text((self.left - gutter, middle), y_label, size + 0.5, "ink", "middle", turned=True))
        for number, text in enumerate(title):
            y = self.top - 8 - (len(title) - 1 - number) * (size + 2.5)
            add(Text((self.left - 2, y), text, size, colour if number == 0 else "muted", bold=number == 0))

    def line(self, points: Iterable[tuple[float, float]], colour: str, width: float = 1.4, **style) -> None:
        """A line through the points, interrupted where one has no place."""
        if places := [self.at(x, y) for x, y in points]:
            self.canvas.add(Line(places, colour, width, **style))

    def across(self, y: float, colour: str, width: float = 1.0, dash: tuple[float, ...] = ()) -> None:
        """A level line."""
        self.line([(self.x.low, y), (self.x.high, y)], colour, width, dash=dash)

    def span(self, low: float, high: float, colour: str, opacity: float) -> None:
        """A level band."""
        (left, bottom), (right, top) = self.at(self.x.low, low), self.at(self.x.high, high)
        if self.x.inverted:
            left, right = right, left
        self.canvas.add(Area([(left, bottom), (right, bottom), (right, top), (left, top)], colour, opacity))

    def band(self, points: Sequence[tuple[float, float, float]], colour: str, opacity: float = 0.14) -> None:
        """Between the low and the high of each (x, low, high)."""
        shown = [point for point in points if all(map(math.isfinite, point))]
        if len(shown) > 1:
            edge = [self.at(x, low) for x, low, _ in shown] + [self.at(x, high) for x, _, high in reversed(shown)]
            self.canvas.add(Area(edge, colour, opacity))

    def interval(self, x: float, y: Estimate, colour: str, opacity: float = 0.6) -> None:
        """An upright interval, as far as its ends are finite."""
        below, above = arms(y)
        if below or above:
            self.line([(x, y.value - below), (x, y.value + above)], colour, 1.1, opacity=opacity)

    def mark(self, x: float, y: float, shape: Shape, colour: str, says: str = "", **style) -> None:
        """A mark, where the point has a place."""
        at = self.at(x, y)
        if all(map(math.isfinite, at)):
            self.canvas.add(Mark(at, shape, colour, says=says, **style))


@dataclass
class Grid:
    """Panels of one size below `top`, in reading order."""

    canvas: Canvas
    top: float
    columns: int
    high: float
    count: int = 0

    def panel(self, x: Scale, y: Scale) -> Panel:
        """The next one, with room for a title, ticks and names."""
        wide = self.canvas.width / self.columns
        left, upper = wide * (self.count % self.columns), self.top + self.high * (self.count // self.columns)
        self.count += 1
        return Panel(self.canvas, left + 68, upper + 30, left + wide - 12, upper + self.high - 46, x, y)

    @property
    def height(self) -> float:
        """Where the last row ends."""
        return self.top + self.high * -(-self.count // self.columns)


@dataclass(frozen=True)
class Entry:
    """Of a legend: a mark, a line, or both."""

    text: str
    colour: str
    shape: Shape | None = None
    hollow: bool = False
    line: bool = False
    width: float = 1.4
    dash: tuple[float, ...] = ()
    opacity: float = 1.0
    radius: float = 4.0


def legend(canvas: Canvas, entries: Sequence[Entry], size: float = 11.5, top: float = 6.0) -> float:
    """Writes the entries from the upper left on, line by line; where it ends, pixels from the top."""
    x, y = 8.0, top + size
    for entry in entries:
        lines = wrapped(entry.text, size, canvas.width - 44)
        wide = 34 + max(width_of(line, size) for line in lines)
        if x + wide > canvas.width and x > 8:
            x, y = 8.0, y + size + 7
        middle = y - size * 0.33
        if entry.line:
            ends: list[Place] = [(x, middle), (x + 22, middle)]
            canvas.add(Line(ends, entry.colour, entry.width, entry.dash, entry.opacity))
        if entry.shape is not None:
            canvas.add(Mark((x + 11, middle), entry.shape, entry.colour, entry.radius, entry.hollow))
        canvas.add(*(Text((x + 28, y + number * (size + 3)), line, size) for number, line in enumerate(lines)))
        y += (len(lines) - 1) * (size + 3)
        x += wide + 10
    return y + 8


def wrapped(text: str, size: float, width: float) -> list[str]:
    """The text in as many lines as it takes."""
    lines: list[str] = []
    for word in text.split():
        if lines and width_of(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def drawable(estimate: Estimate | None) -> TypeGuard[Estimate]:
    """Whether an estimate has a place in a figure; a signal that was not measured (None) has none."""
    return estimate is not None and math.isfinite(estimate.value)


def arms(estimate: Estimate) -> tuple[float, float]:
    """The lengths of the interval's two arms; 0 where an end is not finite."""
    lengths = (estimate.value - estimate.low, estimate.high - estimate.value)
    below, above = (max(length, 0.0) if math.isfinite(length) else 0.0 for length in lengths)
    return below, above


def said(name: str, estimate: Estimate, digits: int = 3, unit: str = "") -> str:
    """What stands under the pointer: `round 2, healed: 0.210 [0.140, 0.290] nats/token`."""
    numbers = [f"{number:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high)]
    bounds = f" [{numbers[1]}, {numbers[2]}]" if math.isfinite(estimate.low) and math.isfinite(estimate.high) else ""
    return f"{name}: {numbers[0]}{bounds}{unit and ' ' + unit}".replace("-", "\N{MINUS SIGN}")
