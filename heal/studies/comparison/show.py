"""A comparison as text, Markdown, CSV and HTML."""

import base64
import csv
import io
from collections.abc import Sequence

from jinja2 import Environment

from heal.evaluation.signal import TRAIT
from heal.evaluation.stats import Estimate
from heal.studies.comparison.arms import Arm, Line, Settings, not_valid, shown, tested
from heal.studies.comparison.runs import BASE


def header() -> list[str]:
    """The titles of the table's columns."""
    values = [signal.term for signal in shown()]
    return [
        "arm",
        "seeds",
        "rounds",
        values[0],
        "over base",
        *values[1:],
        "margin",
        "coh_cost",
        "saturated after",
        "coherent until",
        "holds",
        "best round",
        "its shift",
        *(f"p {signal.term}" for signal in tested()),
    ]


def caption() -> str:
    """What stands under the table."""
    notes = "; ".join(f"{signal.term}: {signal.note}" for signal in shown())
    return (
        f"After the last round; mean over seeds, 95 % intervals over seeds and prompts. {notes}; over base: the paired "
        "difference of the trait; margin: of the worst valid coherence signal, 1 as at base and 0 at its limit; "
        "coh_cost: |d p_ans_any| over |d trait|, blank where the trait's interval includes 0; saturated after: rounds "
        "until 0.9 of the largest shift; coherent until: rounds before the first past a limit of coherence; best round "
        "of each seed: the most trait among those that hold; its shift: on prompts that did not choose it, over the "
        "seeds that have one; p: against the first trained arm, paired by prompt, Holm-adjusted, blank where prompts "
        "or rounds differ; n: held-out prompts. Base, prompted and raw steering are not trained."
    )


def validity_note(arms: Sequence[Arm]) -> str:
    """Which signals are not valid for the model, and why; empty when all are."""
    doubted = not_valid(arms)
    if not doubted:
        return ""
    return f"Not valid for this model: {'; '.join(doubted)}."


def cells(line: Line) -> list[str]:
    """One row of the table as text, in the order of `header`."""
    values = [_interval(line.values[signal.name], signal.digits) for signal in shown()]
    trait = line.values[TRAIT]
    return [
        line.arm.name,
        str(len(line.arm.runs)),
        str(line.arm.rounds) if line.arm.stage is None else "",
        values[0] + ("" if trait is None else f" (n = {trait.n})"),
        _interval(line.shift, sign=True),
        *values[1:],
        f"{line.margin:.2f}",
        "" if line.cost is None else f"{line.cost.ratio:.3f}",
        "" if line.saturation is None else f"{line.saturation:.1f}",
        "" if line.coherent is None else f"{line.coherent:.1f}",
        "" if line.holds is None else f"{line.holds} of {len(line.arm.runs)}",
        ", ".join("none" if number is None else str(number) for number in line.best),
        _interval(line.best_shift, sign=True),
        *(_p_value(line.p[signal.name]) for signal in tested()),
    ]


def markdown(lines: Sequence[Line]) -> str:
    """The table in Markdown, with its caption."""
    rows = [header(), ["---"] * len(header()), *(cells(line) for line in lines)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    note = validity_note([line.arm for line in lines])
    return f"{table}\n\n{caption()}\n" + (f"\n{note}\n" if note else "")


def rounds_csv(arms: Sequence[Arm], settings: Settings) -> str:
    """Every arm, round and signal as one line: what the figure is drawn from. Round 0 is base."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seeds", "round", "signal", "value", "low", "high", "n"])
    for arm in arms:
        for signal in arm.signals:
            for where in [arm.stage] if arm.stage else [BASE, *range(arm.rounds)]:
                estimate = arm.estimate(signal, where, settings)
                assert estimate is not None  # `arm.signals` has what is there everywhere
                numbers = [f"{number:.6g}" for number in (estimate.value, estimate.low, estimate.high)]
                number = where + 1 if isinstance(where, int) else 0
                writer.writerow([arm.name, len(arm.runs), number, signal, *numbers, estimate.n])
    return text.getvalue()


def page(lines: Sequence[Line], image: bytes, title: str) -> str:
    """One self-contained HTML page: table and figure."""
    environment = Environment(autoescape=True)
    return environment.from_string(_PAGE).render(
        title=title,
        header=header(),
        rows=[cells(line) for line in lines],
        caption=caption(),
        note=validity_note([line.arm for line in lines]),
        image=base64.b64encode(image).decode(),
    )


def _p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _interval(estimate: Estimate | None, digits: int = 3, sign: bool = False) -> str:
    if estimate is None:
        return ""
    plus = "+" if sign else ""
    return f"{estimate.value:{plus}.{digits}f} [{estimate.low:{plus}.{digits}f}, {estimate.high:{plus}.{digits}f}]"


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
