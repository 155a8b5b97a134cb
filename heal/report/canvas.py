"""Figures as lists of shapes, and these as SVG for a page, as an SVG file, or as PNG for a tracker.

An SVG has no style of its own but names of colours, which the page's style defines for light and dark (`palette`); a
mark that says something carries it as its title. Places are pixels from the upper left corner.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.patheffects import withStroke
from matplotlib.text import Text as Written
from matplotlib.transforms import Affine2D, Transform

Place = tuple[float, float]
Shape = Literal["circle", "square", "diamond", "star", "up", "down", "cross", "bar"]

# Light and dark, by name; `--figure-NAME` in a style.
PALETTE = {
    "paper": ("#ffffff", "#1b1e22"),
    "ink": ("#1f2328", "#e4e6e9"),
    "muted": ("#5b626b", "#9aa2ab"),
    "grid": ("#e7e8ea", "#30353b"),
    "past": ("#b3261e", "#f08d7f"),
    "prompted": ("#00796b", "#4db6a6"),
}
# Of arms: Okabe and Ito's, which survive colour blindness, of a lightness that shows on either paper.
COLOURS = ("#0078bd", "#d55e00", "#00966e", "#b8629a", "#8a6d00", "#5a7d9a", "#a0522d")
MARKS: tuple[Shape, ...] = ("circle", "square", "diamond", "up", "down", "star")
# Of rounds, first to last; their lightness shows on either paper.
_ROUNDS = ((0x3F, 0x6F, 0xD9), (0x95, 0x52, 0xCF), (0xCB, 0x3F, 0x86), (0xD9, 0x54, 0x3B), (0xC9, 0x7A, 0x0A))
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_RING = 6.6  # radius from which a hollow mark is a ring around another one
_HIT = 11.0  # radius within which a pointer finds a mark
# Markers of matplotlib, and their sizes in radii.
_MARKERS: dict[Shape, tuple[str, float]] = {
    "circle": ("o", 2), "square": ("s", 1.8), "diamond": ("D", 1.75), "star": ("*", 2.9), "up": ("^", 2.2),
    "down": ("v", 2.2), "cross": ("x", 2), "bar": ("_", 2.8),
}  # fmt: skip
_NARROW, _WIDE = "iljtfI .,:;'|()[]!", "mwMW@%—"


@dataclass(frozen=True)
class Line:
    """A polyline; a place that is not finite interrupts it."""

    places: Sequence[Place]
    colour: str
    width: float = 1.2
    dash: tuple[float, ...] = ()
    opacity: float = 1.0


@dataclass(frozen=True)
class Area:
    """A filled polygon without an edge."""

    places: Sequence[Place]
    colour: str
    opacity: float = 1.0


@dataclass(frozen=True)
class Mark:
    """A point of the data; `says` is what stands under the pointer."""

    at: Place
    shape: Shape
    colour: str
    radius: float = 4.0
    hollow: bool = False
    says: str = ""
    edge: float = 1.5

    @property
    def fill(self) -> str:
        """A ring around another mark has none."""
        return ("none" if self.radius > _RING else "paper") if self.hollow else self.colour


@dataclass(frozen=True)
class Text:
    """One line; `halo` keeps it legible over lines, `turned` reads upwards."""

    at: Place
    text: str
    size: float = 11.0
    colour: str = "ink"
    anchor: Literal["start", "middle", "end"] = "start"
    bold: bool = False
    halo: bool = False
    turned: bool = False


@dataclass
class Canvas:
    """A figure: its size in pixels and its shapes, the last on top."""

    width: float
    height: float
    shapes: list[Line | Area | Mark | Text] = field(default_factory=list)

    def add(self, *shapes: Line | Area | Mark | Text) -> None:
        self.shapes += shapes


def round_colours(count: int) -> list[str]:
    """One colour a round, in the order of a rainbow that leaves green out."""
    return [_between(place / max(count - 1, 1) * (len(_ROUNDS) - 1)) for place in range(count)]


def _between(place: float) -> str:
    first = min(int(place), len(_ROUNDS) - 2)
    part = place - first
    return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in zip(*_ROUNDS[first : first + 2], strict=True))


def width_of(text: str, size: float) -> float:
    """The width of a line of text, pixels, at most; fonts differ."""
    return size * sum(0.36 if c in _NARROW else 0.95 if c in _WIDE else 0.7 if c.isupper() else 0.6 for c in text)


def palette() -> str:
    """The colours as a style: light, and dark where that is preferred."""
    light, dark = (" ".join(f"--figure-{name}: {both[side]};" for name, both in PALETTE.items()) for side in (0, 1))
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def svg(canvas: Canvas, alternative: str, kind: str) -> Markup:
    """For a page that holds the palette; `alternative` says what it shows, `kind` is its class."""
    content = Markup("").join(_element(shape) for shape in canvas.shapes)
    return Markup(
        '<svg class="{}" viewBox="0 0 {} {}" role="group" aria-label="{}" tabindex="0" font-family="{}">{}</svg>'
    ).format(kind, _n(canvas.width), _n(canvas.height), alternative, _FONT, content)


def png(canvas: Canvas, scale: float = 2.0) -> bytes:
    """In the light colours, `scale` pixels for one."""
    figure = Figure((canvas.width / 72, canvas.height / 72), dpi=72 * scale, facecolor=_hex("paper"))
    places = Affine2D().scale(scale, -scale).translate(0, canvas.height * scale)
    for number, shape in enumerate(canvas.shapes):
        drawn = _artist(shape, places)
        drawn.set_zorder(number)
        figure.add_artist(drawn)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def _element(shape: Line | Area | Mark | Text) -> Markup:
    if isinstance(shape, Line):
        dash = Markup(' stroke-dasharray="{}"').format(" ".join(map(_n, shape.dash))) if shape.dash else ""
        faint = Markup(' opacity="{}"').format(_n(shape.opacity)) if shape.opacity < 1 else ""
        return Markup('<path fill="none" stroke="{}" stroke-width="{}" stroke-linejoin="round"{}{} d="{}"/>').format(
            _css(shape.colour), _n(shape.width), dash, faint, _path(shape.places)
        )
    if isinstance(shape, Area):
        return Markup('<path fill="{}" opacity="{}" d="{}Z"/>').format(
            _css(shape.colour), _n(shape.opacity), _path(shape.places)
        )
    if isinstance(shape, Mark):
        return _mark(shape)
    return _text(shape)


def _mark(mark: Mark) -> Markup:
    (x, y), colour = mark.at, _css(mark.colour)
    if mark.shape == "circle":
        form = Markup('<circle cx="{}" cy="{}" r="{}"').format(_n(x), _n(y), _n(mark.radius))
    else:
        closed = "" if mark.shape in ("cross", "bar") else "Z"
        form = Markup('<path d="{}{}"').format(_path(outline(mark)), closed)
    drawn = form + Markup(' fill="{}" stroke="{}" stroke-width="{}"/>').format(_css(mark.fill), colour, _n(mark.edge))
    if not mark.says:
        return drawn
    return Markup('<g class="mark"><title>{}</title><circle cx="{}" cy="{}" r="{}" fill="transparent"/>{}</g>').format(
        mark.says, _n(x), _n(y), _n(_HIT), drawn
    )


def outline(mark: Mark) -> list[Place]:
    """The corners of a mark that is no circle."""
    (x, y), r = mark.at, mark.radius
    if mark.shape == "star":
        turns = [(math.pi * k / 5, r * (1.35 if k % 2 == 0 else 0.55)) for k in range(10)]
        return [(x + far * math.sin(turn), y - far * math.cos(turn)) for turn, far in turns]
    corners: dict[str, list[Place]] = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        "up": [(0, -1.2), (1.1, 0.9), (-1.1, 0.9)],
        "down": [(0, 1.2), (1.1, -0.9), (-1.1, -0.9)],
        "cross": [(-1, -1), (1, 1), (math.nan, math.nan), (-1, 1), (1, -1)],
        "bar": [(-1.4, 0), (1.4, 0)],
    }
    return [(x + r * dx, y + r * dy) for dx, dy in corners[mark.shape]]


def _text(text: Text) -> Markup:
    (x, y) = text.at
    attributes = Markup("")
    if text.anchor != "start":
        attributes += Markup(' text-anchor="{}"').format(text.anchor)
    if text.bold:
        attributes += Markup(' font-weight="600"')
    if text.halo:
        attributes += Markup(' paint-order="stroke" stroke="var(--figure-paper)" stroke-width="3"')
    if text.turned:
        attributes += Markup(' transform="rotate(-90 {} {})"').format(_n(x), _n(y))
    return Markup('<text x="{}" y="{}" font-size="{}" fill="{}"{}>{}</text>').format(
        _n(x), _n(y), _n(text.size), _css(text.colour), attributes, escape(text.text)
    )


def _artist(shape: Line | Area | Mark | Text, places: Transform) -> Artist:
    """The same for matplotlib."""
    drawn: Artist
    if isinstance(shape, Line):
        # Dashes are in units of the line's width.
        dash = (0, tuple(length / shape.width for length in shape.dash)) if shape.dash else "-"
        x, y = zip(*shape.places, strict=True)
        drawn = Line2D(
            x, y, color=_hex(shape.colour), linewidth=shape.width, linestyle=dash, alpha=shape.opacity
        )  # fmt: skip
    elif isinstance(shape, Area):
        drawn = Polygon(list(shape.places), facecolor=_hex(shape.colour), alpha=shape.opacity, linewidth=0)
    elif isinstance(shape, Mark):
        form, size = _MARKERS[shape.shape]
        drawn = Line2D(
            *([number] for number in shape.at), linestyle="none", marker=form, markersize=shape.radius * size,
            color=_hex(shape.colour), markerfacecolor=_hex(shape.fill), markeredgewidth=shape.edge,
        )  # fmt: skip
    else:
        across: Literal["left", "center", "right"]
        across = "left" if shape.anchor == "start" else "center" if shape.anchor == "middle" else "right"
        drawn = Written(
            *shape.at, shape.text, color=_hex(shape.colour), fontsize=shape.size * 0.92, horizontalalignment=across,
            verticalalignment="baseline", rotation=90 * shape.turned, rotation_mode="anchor",
            fontweight="bold" if shape.bold else "normal", parse_math=False,
        )  # fmt: skip
        if shape.halo:
            drawn.set_path_effects([withStroke(linewidth=3, foreground=_hex("paper"))])
    drawn.set_transform(places)
    return drawn


def _css(colour: str) -> str:
    return f"var(--figure-{colour})" if colour in PALETTE else colour


def _hex(colour: str) -> str:
    return PALETTE[colour][0] if colour in PALETTE else colour


def _path(places: Sequence[Place]) -> str:
    """The `d` of a polyline."""
    parts, drawing = [], False
    for x, y in places:
        if math.isfinite(x) and math.isfinite(y):
            parts.append(f"{'L' if drawing else 'M'}{_n(x)} {_n(y)}")
        drawing = math.isfinite(x) and math.isfinite(y)
    return "".join(parts)


def _n(number: float) -> str:
    """A number of pixels, in tenths where it is not whole, hundredths below 1."""
    return f"{number:.2f}".rstrip("0").rstrip(".") if abs(number) < 1 else f"{number:.1f}".rstrip("0").rstrip(".")
