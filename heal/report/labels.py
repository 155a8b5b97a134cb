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
    """The text of a point, and a shorter one for where there is no room for it."""

    at: Place
    text: str
    short: str = ""


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

    Labels keep off points and other labels first, then off `lines`, and stay `inside`. Greedy, in the given order. One
    that would cover another, cover a point or stick out is shortened, and left out if it still covers another.

    Returns:
        Where each was written.
    """
    points = [Box(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in (label.at for label in labels)]
    felt, written = [box for line in lines for box in _along(line)], list[Box]()
    for label in labels:
        for text in (label.text, label.short):
            box, (dx, dy, far) = _best(label.at, width_of(text, size), size, [*points, *written], felt, inside)
            taken = written if text == label.short else [*points, *written]
            whole = text == label.short or box.overlap(inside) > 0.99 * box.overlap(box)
            if text and whole and not any(box.overlap(other) for other in taken):
                break
        else:
            continue
        written.append(box)
        x, y = label.at
        if far > _DISTANCES[1]:
            near = _MARKER / math.hypot(dx, dy)
            half = (box.right - box.left) / 2, (box.bottom - box.top) / 2
            end = 1 - min(length / max(abs(way), 1e-9) for length, way in zip(half, (dx, dy), strict=True))
            canvas.add(Line([(x + dx * near, y + dy * near), (x + dx * end, y + dy * end)], "muted", 0.7))
        canvas.add(Text((x + dx, y + dy + size * 0.35), text, size, anchor="middle", bold=True, halo=True))
    return written


_Offset = tuple[float, float, float]  # of a label's centre from its point, with its distance, pixels


def _best(
    at: Place, width: float, size: float, taken: Sequence[Box], felt: Sequence[Box], inside: Box
) -> tuple[Box, _Offset]:
    """Where a text of that width costs least: what is taken weighs most, then leaving `inside`, then lines."""
    (x, y), wide, high = at, width / 2 + 1, size / 2 + 1

    def box(offset: _Offset) -> Box:
        dx, dy, _ = offset
        return Box(x + dx - wide, y + dy - high, x + dx + wide, y + dy + high)

    def cost(offset: _Offset) -> float:
        here = box(offset)
        outside = 4 * wide * high - here.overlap(inside)
        covered = sum(here.overlap(other) for other in taken)
        return 20 * covered + 20 * outside + 2 * sum(here.overlap(other) for other in felt) + offset[2]

    offset = min(_places(wide, high), key=cost)
    return box(offset), offset


def _places(wide: float, high: float) -> list[_Offset]:
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
