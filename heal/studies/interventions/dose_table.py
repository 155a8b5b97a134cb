"""The doses of a study as Markdown, CSV and a figure of the statistic against the coefficient."""

import csv
import io
import math
from collections.abc import Sequence
from itertools import cycle

from matplotlib.axes import Axes

from heal.markdown import markdown_table
from heal.report.drawing import COLOURS, DASHES, INK, MARKERS, MUTED, legend, log_axis, mark, new_figure, png
from heal.studies.interventions.doses import Dosed, Prompted
from heal.studies.interventions.show import folded

HEADER = ("intervention", "c*", "p95 KL", "outcome", "evaluations", "audit", "audit / p95", "seconds")

CAPTION = (
    "p95 KL: 95th percentile of the per-token KL along greedy paths under the intervention, nats, pooled over prompts "
    "and positions; outcome: tolerance (on target), bracket (the statistic jumps over the target), passes (gave up), "
    "unreachable (no coefficient reaches it; c* is where it comes nearest); evaluations: coefficients measured; "
    "audit: the same at c* on held-out prompts; seconds: fitting and calibration. A prompt has no coefficient: its "
    "row is what it spends as it is."
)


def rows(dosed: Sequence[Dosed], prompts: Sequence[Prompted]) -> list[dict[str, str]]:
    """One row an intervention and sign, and one a prompt; empty where there is no such number."""
    table = []
    for arm in dosed:
        result = arm.calibration
        audit = None if result.audit is None else result.audit.p95
        cells = (
            arm.label,
            f"{arm.sign * result.c_star:.4g}",
            f"{result.value:.3f}",
            result.outcome if result.on_target else f"{result.outcome}: {'most' if _under(arm) else 'least'} reached",
            str(len(result.history)),
            "" if audit is None else f"{audit:.3f}",
            "" if audit is None or not result.value > 0 else f"{audit / result.value:.2f}",
            f"{arm.seconds:.1f}",
        )
        table.append(dict(zip(HEADER, cells, strict=True)))
    for prompt in prompts:
        cells = (prompt.label, "", f"{prompt.divergence.p95:.3f}", "no dose", "1", "", "", "")
        table.append(dict(zip(HEADER, cells, strict=True)))
    return table


def markdown(dosed: Sequence[Dosed], prompts: Sequence[Prompted]) -> str:
    """The table with its caption."""
    return markdown_table(HEADER, (row.values() for row in rows(dosed, prompts))) + f"\n\n{CAPTION}\n"


def history_csv(dosed: Sequence[Dosed], prompts: Sequence[Prompted]) -> str:
    """Every evaluation of every search, the audits and the prompts, one line each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["intervention", "sign", "kind", "c", "p50", "p95", "mean", "max", "n", "c_star", "outcome"])
    for arm in dosed:
        result = arm.calibration
        measured = [("search", entry) for entry in result.history]
        measured += [] if result.audit is None else [("audit", result.audit)]
        for kind, entry in measured:
            numbers = [f"{x:.6g}" for x in (arm.sign * entry.c, entry.p50, entry.p95, entry.mean, entry.max)]
            star = f"{arm.sign * result.c_star:.6g}"
            writer.writerow([arm.name, arm.sign, kind, *numbers, entry.n, star, result.outcome])
    for prompt in prompts:
        spent = prompt.divergence
        numbers = [f"{x:.6g}" for x in (spent.p50, spent.p95, spent.mean, spent.max)]
        writer.writerow([prompt.name, prompt.sign, "prompt", "", *numbers, spent.n, "", "no dose"])
    return text.getvalue()


def figure(dosed: Sequence[Dosed], prompts: Sequence[Prompted]) -> bytes:
    """The statistic against the coefficient, both logarithmic, a panel a sign; c* is the large mark.

    The dashed line is the target, the dotted ones are what the prompts spend. A coefficient of 0 has no place on a
    logarithmic axis and is left out.
    """
    signs = sorted({arm.sign for arm in dosed}, reverse=True)
    drawn, axes = new_figure(len(signs), 1, 1.6 + 3.1 * len(signs))
    names = list(dict.fromkeys(arm.name for arm in dosed))
    looks = dict(zip(names, zip(cycle(COLOURS), cycle(MARKERS)), strict=False))
    for axis, sign in zip(axes, signs, strict=True):
        for arm in (arm for arm in dosed if arm.sign == sign):
            _search(axis, arm, *looks[arm.name])
        target = dosed[0].calibration.target
        axis.axhline(target, color=INK, linestyle=DASHES, linewidth=1)
        for prompt in (prompt for prompt in prompts if prompt.sign == sign and prompt.divergence.p95 > 0):
            spent = prompt.divergence.p95
            axis.axhline(spent, color=MUTED, linestyle=":", linewidth=1)
            axis.annotate(
                prompt.name, (0.995, spent), xycoords=("axes fraction", "data"), ha="right",
                va="bottom" if spent > target else "top", fontsize=8, color=MUTED,
            )  # fmt: skip
        log_axis(axis, "x")
        log_axis(axis, "y")
        axis.set_ylabel("p95 KL, nats")
        axis.set_title("towards the positive persona" if sign > 0 else "towards the negative persona", fontsize=10)
    axes[-1].set_xlabel("coefficient c (log); the large mark is c*")
    legend(drawn, [mark(looks[name][1], looks[name][0], folded(name)) for name in names], 3)
    return png(drawn)


def _search(axis: Axes, arm: Dosed, colour: str, marker: str) -> None:
    points = sorted((entry.c, entry.p95) for entry in arm.calibration.history)
    shown = [(c, value) for c, value in points if c > 0 and value > 0 and math.isfinite(value)]
    if shown:
        axis.plot(*zip(*shown, strict=True), color=colour, marker=marker, markersize=3.5, linewidth=1.2)
    if arm.calibration.c_star > 0 and math.isfinite(arm.calibration.value):
        axis.plot(arm.calibration.c_star, arm.calibration.value, color=colour, marker=marker, markersize=8)


def _under(arm: Dosed) -> bool:
    return arm.calibration.value < arm.calibration.target
