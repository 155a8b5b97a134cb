"""A comparison as text, Markdown, CSV, HTML and one figure."""

import base64
import csv
import io
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from jinja2 import Environment
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from heal.evaluation.stats import Estimate
from heal.report.drawing import COLOURS, DASHES, DOTS, INK, MARKERS, MUTED, legend, log_axis, new_figure, png
from heal.studies.comparison.arms import TAIL, TRAIT, Arm, Line, Settings, not_valid
from heal.studies.comparison.runs import BASE

_STAGE_MARKS = {"base": "s", "prompted": "D"}
_FILLS, _CROSSES = ("full", "none", "left", "bottom"), ("x", "+", "1", "2")

HEADER = (
    "arm",
    "seeds",
    "rounds",
    "trait",
    "over base",
    "p_ans_any",
    "tail perplexity",
    "margin",
    "coh_cost",
    "saturated after",
    "coherent until",
    "holds",
    "p trait",
    "p tail",
)

CAPTION = (
    "After the last round; mean over seeds, 95 % intervals over seeds and prompts. trait: persona log-ratio, nats per "
    "token; over base: its paired difference; tail perplexity: median over answers; margin: of the worst valid "
    "coherence signal, 1 as at base and 0 at its limit; coh_cost: |d p_ans_any| over |d trait|, blank where the "
    "trait's interval includes 0; saturated after: rounds until 0.9 of the largest shift; coherent until: rounds "
    "before the first past a limit of coherence; p: against the first trained arm, paired by prompt, Holm-adjusted, "
    "blank where prompts or rounds differ; n: held-out prompts. Base, prompted and raw steering are not trained."
)


def validity_note(arms: Sequence[Arm]) -> str:
    """Which signals are not valid for the model, and why; empty when all are."""
    doubted = not_valid(arms)
    if not doubted:
        return ""
    return f"Not valid for this model: {'; '.join(doubted)}."


def cells(line: Line) -> list[str]:
    """One row of the table as text, in the order of HEADER."""
    return [
        line.arm.name,
        str(len(line.arm.runs)),
        str(line.arm.rounds) if line.arm.stage is None else "",
        f"{_interval(line.trait)} (n = {line.trait.n})",
        _interval(line.shift, sign=True),
        _interval(line.mass),
        _interval(line.tail, 2),
        f"{line.margin:.2f}",
        "" if line.coh_cost is None else f"{line.coh_cost:.3f}",
        "" if line.saturation is None else f"{line.saturation:.1f}",
        "" if line.coherent is None else f"{line.coherent:.1f}",
        "" if line.holds is None else f"{line.holds} of {len(line.arm.runs)}",
        _p_value(line.p_trait),
        _p_value(line.p_tail),
    ]


def markdown(lines: Sequence[Line]) -> str:
    """The table in Markdown, with its caption."""
    rows = [HEADER, ["---"] * len(HEADER), *(cells(line) for line in lines)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    note = validity_note([line.arm for line in lines])
    return f"{table}\n\n{CAPTION}\n" + (f"\n{note}\n" if note else "")


def rounds_csv(arms: Sequence[Arm], settings: Settings) -> str:
    """Every arm, round and signal as one line: what the figure is drawn from. Round 0 is base."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seeds", "round", "signal", "value", "low", "high", "n"])
    for arm in arms:
        for signal in arm.runs[0].signals:
            for where in [arm.stage] if arm.stage else [BASE, *range(arm.rounds)]:
                found = arm.estimate(signal, where, settings)
                numbers = [f"{number:.6g}" for number in (found.value, found.low, found.high)]
                number = where + 1 if isinstance(where, int) else 0
                writer.writerow([arm.name, len(arm.runs), number, signal, *numbers, found.n])
    return text.getvalue()


def figure(arms: Sequence[Arm], settings: Settings) -> bytes:
    """Trait against coherence by round, one line an arm; trait and tail perplexity by round with a band over seeds.

    Base, prompted and raw steering are marks of their own, one kind for each trait, model or measure among them.
    """
    drawn, (path, trait, tail) = new_figure(3, 1, 9.4, heights=(1.3, 1.0, 1.0))
    handles = []
    trained = [arm for arm in arms if arm.stage is None]
    for arm, colour, marker in zip(trained, cycle(COLOURS), cycle(MARKERS)):
        series = {
            name: [arm.estimate(name, where, settings) for where in [BASE, *range(arm.rounds)]]
            for name in (TRAIT, TAIL)
        }
        path.plot(
            [entry.value for entry in series[TRAIT]],
            [entry.value for entry in series[TAIL]],
            color=colour,
            linewidth=1.5,
            marker=marker,
            markersize=4,
        )
        last = series[TRAIT][-1].value, series[TAIL][-1].value
        path.plot(*last, marker=marker, markersize=9, color=colour, linestyle="none")
        _band(trait, series[TRAIT], colour, marker)
        _band(tail, series[TAIL], colour, marker)
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=6, label=arm.name))
    handles += _untrained(path, [arm for arm in arms if arm.stage is not None], settings)
    for base in {round(arm.estimate(TRAIT, BASE, settings).value, 9) for arm in trained}:
        trait.axhline(base, color=MUTED, linestyle=DASHES, linewidth=1)
    for axis in (path, tail):
        log_axis(axis, "y")
        axis.invert_yaxis()
        axis.set_ylabel("tail perplexity (log, inverted)")
    path.set_xlabel("persona log-ratio, nats/token (the large mark is the last round)")
    trait.set_ylabel("persona log-ratio")
    tail.set_xlabel("round")
    legend(drawn, handles, 3)
    return png(drawn)


def page(lines: Sequence[Line], image: bytes, title: str) -> str:
    """One self-contained HTML page: table and figure."""
    environment = Environment(autoescape=True)
    return environment.from_string(_PAGE).render(
        title=title,
        header=HEADER,
        rows=[cells(line) for line in lines],
        caption=CAPTION,
        note=validity_note([line.arm for line in lines]),
        image=base64.b64encode(image).decode(),
    )


def _untrained(path: Axes, arms: Sequence[Arm], settings: Settings) -> list[Line2D]:
    """Draws base, prompted and raw steering; their handles for the legend."""
    handles = []
    fills: dict[str, Any] = dict(zip(dict.fromkeys(_of(arm) for arm in arms), cycle(_FILLS), strict=False))
    crosses = dict(zip(fills, cycle(_CROSSES), strict=False))
    steered: dict[str, list[tuple[float, float]]] = {}
    for arm in arms:
        place = arm.estimate(TRAIT, arm.last, settings).value, arm.estimate(TAIL, arm.last, settings).value
        if arm.stage in _STAGE_MARKS:
            look: dict[str, Any] = {"marker": _STAGE_MARKS[arm.stage], "color": INK, "linestyle": "none"}
            look |= {"fillstyle": fills[_of(arm)], "markerfacecoloralt": "white"}
            path.plot(*place, markersize=9, zorder=4, **look)
            handles.append(Line2D([], [], markersize=6, label=arm.name, **look))
        elif arm.stage is not None:
            steered.setdefault(_of(arm), []).append(place)
            path.annotate(arm.stage.split()[-2], place, (5, 4), textcoords="offset points", fontsize=8, color=MUTED)
    for of, places in steered.items():
        look = {"marker": crosses[of], "color": MUTED, "linestyle": DOTS, "linewidth": 1}
        path.plot(*zip(*places, strict=True), markersize=6, **look)
        handles.append(Line2D([], [], label=f"raw steering, multiples of c*{of}", **look))
    return handles


def _of(arm: Arm) -> str:
    """What an untrained arm's name says after its stage: what it differs in from others of that stage."""
    return arm.name.removeprefix(arm.stage or "")


def _band(axis: Axes, series: Sequence[Estimate], colour: str, marker: str) -> None:
    rounds = np.arange(len(series))
    axis.fill_between(
        rounds, [entry.low for entry in series], [entry.high for entry in series], color=colour, alpha=0.12, linewidth=0
    )
    axis.plot(rounds, [entry.value for entry in series], color=colour, linewidth=1.5, marker=marker, markersize=4)
    axis.set_xticks(rounds)


def _p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _interval(entry: Estimate, digits: int = 3, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{entry.value:{plus}.{digits}f} [{entry.low:{plus}.{digits}f}, {entry.high:{plus}.{digits}f}]"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1f2328; --muted: #5b626b; --line: #d8dbdf; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #e4e6e9; --muted: #9aa2ab; --line: #363b41; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 80rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.4rem 0.9rem 0.4rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 600; }
.note { color: var(--muted); font-size: 0.875rem; max-width: 52rem; }
img { max-width: min(100%, 52rem); height: auto; border-radius: 4px; margin-top: 1.5rem; }
</style>
</head>
<body><main>
<h1>{{ title }}</h1>
<div class="wide"><table>
<thead><tr>{% for name in header %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
<p class="note">{{ caption }}</p>
{% if note %}<p class="note">{{ note }}</p>{% endif %}
<img alt="Trait against coherence by round, one line an arm." src="data:image/png;base64,{{ image }}">
</main></body>
</html>
"""
