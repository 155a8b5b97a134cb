"""Places the labels of points so that they cover neither each other nor the points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.patheffects import withStroke

_MARKER = 7.0  # points from a marker's centre that stay free
_DISTANCES = (11.0, 18.0, 27.0, 38.0)  # points from the marker's centre to the label's centre, on top of its half width
_DIRECTIONS = 16
_STEP = 4.0  # points between the places at which a line is felt

Segment = tuple[tuple[float, float], tuple[float, float]]  # (x, y) to (x, y), data units


@dataclass(frozen=True)
class Label:
    """The text of the point at (x, y), data units."""

    x: float
    y: float
    text: str
    colour: Any


@dataclass(frozen=True)
class _Box:
    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "_Box") -> float:
        """Shared area, square pixels."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(wide, 0.0) * max(high, 0.0)


def place_labels(
    axis: Axes, labels: Sequence[Label], lines: Sequence[Segment], renderer: RendererAgg, size: float = 10.0
) -> None:
    """Writes each label near its point where it overlaps least; a thin line leads to one that had to move away.

    Labels keep off points and other labels first, then off `lines`.

    Greedy, in the given order. The axes' limits and place in the figure must be final.
    """
    pixels = renderer.points_to_pixels(1.0)
    marks = [axis.transData.transform((label.x, label.y)) for label in labels]
    reach = _MARKER * pixels
    taken = [_Box(x - reach, y - reach, x + reach, y + reach) for x, y in marks]
    taken += [box for line in lines for box in _along(axis, line, pixels)]
    window = axis.get_window_extent(renderer)
    inside = _Box(window.x0, window.y0, window.x1, window.y1)
    for label, (x, y) in zip(labels, marks, strict=True):
        text = axis.annotate(
            label.text, (label.x, label.y), (0, 0), textcoords="offset points", ha="center", va="center_baseline",
            fontsize=size, fontweight="bold", color=label.colour, zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        extent = text.get_window_extent(renderer)
        wide, high = extent.width / 2 + pixels, extent.height / 2 + pixels

        def cost(place: tuple[float, float, float]) -> float:
            dx, dy, far = place
            box = _Box(x + dx - wide, y + dy - high, x + dx + wide, y + dy + high)  # noqa: B023
            outside = 4 * wide * high - box.overlap(inside)  # noqa: B023
            return sum(box.overlap(other) for other in taken) + 2 * outside + far

        dx, dy, far = min(_places(pixels, wide, high), key=cost)
        taken.append(_Box(x + dx - wide, y + dy - high, x + dx + wide, y + dy + high))
        text.set_position((dx / pixels, dy / pixels))
        if far > _DISTANCES[1] * pixels:
            axis.annotate(
                "", (label.x, label.y), (dx / pixels, dy / pixels), textcoords="offset points", zorder=4,
                arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.6, "shrinkA": 5, "shrinkB": 4},
            )  # fmt: skip


def _places(pixels: float, wide: float, high: float) -> list[tuple[float, float, float]]:
    """Candidate offsets of the label's centre, pixels, nearest first, with their distance."""
    offsets = []
    for distance in _DISTANCES:
        for step in range(_DIRECTIONS):
            angle = math.pi / 4 + 2 * math.pi * step / _DIRECTIONS
            far = distance * pixels
            dx = math.cos(angle) * (far + max(wide - high, 0))
            offsets.append((dx, math.sin(angle) * far, far))
    return offsets


def _along(axis: Axes, line: Segment, pixels: float) -> list[_Box]:
    """Small boxes along a line, pixels."""
    (x0, y0), (x1, y1) = axis.transData.transform(line)
    if not all(math.isfinite(number) for number in (x0, y0, x1, y1)):
        return []
    count = int(math.hypot(x1 - x0, y1 - y0) / (_STEP * pixels)) + 1
    half = 1.2 * pixels
    places = [(x0 + (x1 - x0) * step / count, y0 + (y1 - y0) * step / count) for step in range(count + 1)]
    return [_Box(x - half, y - half, x + half, y + half) for x, y in places]
