"""Places the labels of points so that they cover neither each other nor the points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from heal.report.canvas import Canvas, Line, Place, Text, width_of

_MARKER = 7.0  # pixels from a marker's centre that stay free
_DISTANCES = (12.0, 19.0, 28.0, 40.0)  # pixels from the marker's centre to the label's, on top of its half width
_DIRECTIONS = 16
_STEP = 4.0  # pixels between the places at which a line is felt
_REACH = 1.2  # pixels of a line to either side

Segment = tuple[Place, Place]


@dataclass(frozen=True)
class Label:
    """The text of a point."""

    at: Place
    text: str


@dataclass(frozen=True)
class Box:
    """Pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """Shared area, square pixels."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(wide, 0.0) * max(high, 0.0)


def place_labels(
    canvas: Canvas, labels: Sequence[Label], lines: Sequence[Segment], inside: Box, size: float
) -> list[Box]:
    """Writes each label near its point where it overlaps least; a thin line leads to one that had to move away.

    Labels keep off points and other labels first, then off `lines`, and stay `inside`. Greedy, in the given order.

    Returns:
        Where each was written.
    """
    taken = [Box(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in (label.at for label in labels)]
    taken += [box for line in lines for box in _along(line)]
    written = []
    for label in labels:
        (x, y), wide, high = label.at, width_of(label.text, size) / 2 + 1, size / 2 + 1

        def box(dx: float, dy: float) -> Box:
            return Box(x + dx - wide, y + dy - high, x + dx + wide, y + dy + high)  # noqa: B023

        def cost(place: tuple[float, float, float]) -> float:
            at, far = box(*place[:2]), place[2]
            outside = 4 * wide * high - at.overlap(inside)  # noqa: B023
            return 4 * sum(at.overlap(other) for other in taken) + 8 * outside + far

        dx, dy, far = min(_places(wide, high), key=cost)
        written.append(box(dx, dy))
        taken.append(written[-1])
        if far > _DISTANCES[1]:
            near = _MARKER / math.hypot(dx, dy)
            end = 1 - min(wide / max(abs(dx), 1e-9), high / max(abs(dy), 1e-9))
            canvas.add(Line([(x + dx * near, y + dy * near), (x + dx * end, y + dy * end)], "muted", 0.7))
        canvas.add(Text((x + dx, y + dy + size * 0.35), label.text, size, anchor="middle", bold=True, halo=True))
    return written


def _places(wide: float, high: float) -> list[tuple[float, float, float]]:
    """Candidate offsets of the label's centre, nearest first, with their distance."""
    offsets = []
    for far in _DISTANCES:
        for step in range(_DIRECTIONS):
            angle = math.pi / 4 + 2 * math.pi * step / _DIRECTIONS
            offsets.append((math.cos(angle) * (far + max(wide - high, 0)), -math.sin(angle) * far, far))
    return offsets


def _along(line: Segment) -> list[Box]:
    """Small boxes along a line."""
    (x0, y0), (x1, y1) = line
    count = int(math.hypot(x1 - x0, y1 - y0) / _STEP) + 1
    places = [(x0 + (x1 - x0) * step / count, y0 + (y1 - y0) * step / count) for step in range(count + 1)]
    return [Box(x - _REACH, y - _REACH, x + _REACH, y + _REACH) for x, y in places]
