"""A comparison as text, Markdown, CSV and HTML."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from heal.evaluation.signal import TRAIT
from heal.evaluation.stats import Estimate
from heal.markdown import markdown_table
from heal.report.canvas import Canvas, svg
from heal.report.page import own_text, page_style, policy
from heal.report.plot import NARROW, WIDE
from heal.studies.comparison.arms import Arm, Line, Settings, not_valid, shown, tested
from heal.studies.comparison.best import BestLine
from heal.studies.comparison.fronts import drift
from heal.studies.comparison.runs import BASE

HERE = Path(__file__).resolve().parent


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
        *(f"p {signal.term}" for signal in tested()),
    ]


def caption() -> str:
    """What stands under the table."""
    notes = "; ".join(f"{signal.term}: {signal.note}" for signal in shown())
    return (
        f"After the last round; mean over seeds, 95 % intervals over seeds and prompts. {notes}; over base: the paired "
        "difference of the trait; margin: of the worst valid coherence signal, 1 as at base and 0 at its limit; "
        "coh_cost: |d p_ans_any| over |d trait|, blank where the trait's interval includes 0; saturated after: rounds "
        "until 0.9 of the largest shift; coherent until: rounds before the first past a limit of coherence; p: against "
        "the first trained arm, paired by prompt, Holm-adjusted, blank where prompts or rounds differ; n: held-out "
        "prompts. Base, prompted and raw steering are not trained."
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
        *(_p_value(line.p[signal.name]) for signal in tested()),
    ]


def best_header() -> list[str]:
    """The titles of the columns of the table of best rounds."""
    return ["arm", "best round of each seed", "trait over base", "margin", "drift", "over the first arm", "p"]


def best_caption(best: Sequence[BestLine]) -> str:
    """What stands under that table."""
    moved = drift([run for line in best for run in line.arm.runs])
    measured = "not measured in one way by all runs" if moved is None else moved.label
    return (
        "Each run at its own best round (the most trait among those that hold), however many rounds it went; the trait "
        "on prompts that did not choose the round, over the seeds that have one; drift: "
        f"{measured}; over the first arm: the trait's difference, paired by prompt, and by seed where both arms have "
        "the same; p: of that difference, Holm-adjusted."
    )


def best_cells(line: BestLine) -> list[str]:
    """One row of that table as text, in the order of `best_header`."""
    return [
        line.arm.name,
        ", ".join("none" if number is None else str(number) for number in line.rounds),
        _interval(line.shift, sign=True),
        "" if line.margin is None else f"{line.margin:.2f}",
        "" if line.drift is None else f"{line.drift:.2f}",
        _interval(line.over_first, sign=True),
        _p_value(line.p),
    ]


def markdown(lines: Sequence[Line], best: Sequence[BestLine]) -> str:
    """Both tables in Markdown, with their captions."""
    last, chosen = markdown_table(header(), map(cells, lines)), markdown_table(best_header(), map(best_cells, best))
    parts = [last, caption(), chosen, best_caption(best), validity_note([line.arm for line in lines])]
    return "\n\n".join(part for part in parts if part) + "\n"


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


def page(
    lines: Sequence[Line], best: Sequence[BestLine], figures: Sequence[Callable[[float], Canvas]], title: str
) -> str:
    """One self-contained HTML page, in the style of a run's report: fronts, tables, and the arms round by round.

    Args:
        lines, best: of the tables.
        figures: what draws the fronts, and the arms round by round, at a width.
        title: of the page.
    """
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style, script = page_style(), own_text("page.js")
    says = (
        "Trait against drift and against coherence margin, a line a run, and differences to the first arm.",
        "Trait against coherence, and both by round, one line an arm.",
    )
    fronts, courses = (
        Markup("").join(svg(draw(width), text, kind) for width, kind in ((WIDE, "wide"), (NARROW, "narrow")))
        for draw, text in zip(figures, says, strict=True)
    )
    return environment.get_template("page.html").render(
        policy=policy(style, script),
        style=style,
        script=script,
        title=title,
        tables=[
            ("At the best rounds", best_header(), [best_cells(line) for line in best], best_caption(best)),
            ("After the last round", header(), [cells(line) for line in lines], caption()),
        ],
        fronts=fronts,
        courses=courses,
        note=validity_note([line.arm for line in lines]),
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
