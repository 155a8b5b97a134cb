"""What the pictures of the studies share: colours, quiet axes, marks, and PNG bytes without pyplot or global state."""

import io
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

WIDTH = 6.3  # inches
DPI = 200
INK, MUTED, GRID = "#1f2328", "#5b626b", "#e7e8ea"
# Okabe and Ito's, which survive colour blindness; yellow left out on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = "osD^vPXh"
DASHES, DOTS = (0, (5, 3)), (0, (1.2, 1.6))

# Ticks within a decade, by the span of the axis.
_TICKS = (
    (1.6, (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.2, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0)),
    (5.0, (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0)),
    (20.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    (300.0, (1.0, 2.0, 5.0)),
)


def round_colours(count: int) -> list[Any]:
    """One colour a round, dark to light."""
    return [matplotlib.colormaps["plasma"](place) for place in np.linspace(0.05, 0.70, max(count, 1))][:count]


def new_figure(
    rows: int,
    columns: int,
    height: float,
    sharex: bool = False,
    heights: Sequence[float] | None = None,
    width: float = WIDTH,
) -> tuple[Figure, list[Axes]]:
    """A white figure with quiet axes, in reading order."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
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


def log_axis(axis: Axes, which: Literal["x", "y"]) -> None:
    """Makes an axis with its data already on it logarithmic, with plain round numbers as ticks."""
    axis.set_xscale("log") if which == "x" else axis.set_yscale("log")
    side = axis.xaxis if which == "x" else axis.yaxis
    low, high = sorted(side.get_view_interval())
    steps = next((subs for span, subs in _TICKS if high / low < span), (1.0,))
    side.set_major_locator(LogLocator(subs=steps, numticks=20))
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    side.set_minor_locator(NullLocator())
    side.set_minor_formatter(NullFormatter())


def mark(marker: str, colour: str, label: str, hollow: bool = False) -> Line2D:
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


def settle(figure: Figure) -> FigureCanvasAgg:
    """Draws once and freezes the layout, so that places in pixels hold."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")
    return canvas


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def legend(figure: Figure, handles: Sequence[Line2D], columns: int) -> None:
    """The figure's legend, above the axes."""
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        columnspacing=1.6,
        handlelength=1.8,
    )
