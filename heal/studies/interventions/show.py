"""The table of interventions as Markdown and CSV, and its figure."""

import csv
import io
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from heal.evaluation.readouts.drift import DRIFT
from heal.evaluation.readouts.likelihood import TAIL_PERPLEXITY
from heal.evaluation.readouts.moral_foundations import CLR
from heal.evaluation.readouts.questions import P_ANS_ANY
from heal.evaluation.readouts.wrongness import WRONGNESS
from heal.evaluation.signal import TRAIT, Signal
from heal.evaluation.stats import Estimate
from heal.evaluation.surgical import VARIANTS, DeltaLogit
from heal.evaluation.vignettes import FOUNDATIONS
from heal.markdown import markdown_table
from heal.report.drawing import COLOURS, DASHES, MUTED, legend, new_figure, png
from heal.report.drawing import mark as legend_mark
from heal.report.plot import arms, drawable
from heal.studies.interventions.compare import Line, Pair, Setting
from heal.studies.interventions.doses import mark

NOT_VALID = "not valid here"
LABELS = ("two-sided", "one-armed")  # of surgical informedness, which do not compare
_UP, _DOWN = COLOURS[0], COLOURS[1]
SHOWN = (P_ANS_ANY, TAIL_PERPLEXITY, DRIFT["p95"])  # beside the coherence margin
_LONGEST = 22  # letters of a line of a name in the figure


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        title: its head.
        cell: what stands in an intervention's line.
        signal: the readout that it rests on, whose validity its head carries; empty where it rests on none.
        of_pair: whether it is about both signs, and stands in the first line alone.
    """

    title: str
    cell: Callable[[Pair, Line], str]
    signal: str = ""
    of_pair: bool = False


def columns(setting: Setting, pairs: Sequence[Pair]) -> list[Column]:
    """The table's columns; those of the scenes only where they were asked and the trait means a foundation.

    Surgical informedness has columns of its own where it is two-sided and where it is one-armed.
    """
    labels = {entry.label for pair in pairs for entry in pair.surgical.values()}
    chosen = [
        Column("intervention", lambda pair, line: f"{line.name} {mark(line.sign)}"),
        Column("c*", lambda pair, line: "no dose" if line.c_star is None else f"{line.c_star:.3g}"),
        Column("p95 KL", lambda pair, line: f"{line.spent:.2f}{'' if line.on_target in (None, True) else ' (missed)'}"),
        Column("trait over base", lambda pair, line: _interval(line.shift), TRAIT),
    ]
    if setting.meant:
        clr, meant = CLR[setting.meant].name, setting.meant
        chosen += [
            Column(f"d {meant}, nats", lambda pair, line: _interval(line.target), clr),
            Column("d others, nats", lambda pair, line: _number(line.off_target, 3, "no scene was scored"), clr),
            Column(f"d logit {meant}", lambda pair, line: _logit(line.logits.get(meant)), WRONGNESS.name),
            Column("d logit others", lambda pair, line: _other_logits(line, meant), WRONGNESS.name),
            *(
                Column(f"SI {label} ({name})", _surgical(name, label), WRONGNESS.name, of_pair=True)
                for name in VARIANTS
                for label in LABELS
                if label in labels
            ),
            Column(
                "gated selectivity",
                lambda pair, line: _number(pair.selectivity, 3, "a foundation has no scored scene") + _side(pair),
                clr,
                of_pair=True,
            ),
        ]
    return [
        *chosen,
        Column("margin", lambda pair, line: f"{line.coherence.margin:.2f} ({line.coherence.worst})"),
        *(Column(signal.title, _signal(signal), signal.name) for signal in SHOWN),
        Column("seconds", lambda pair, line: f"{line.seconds:.0f}"),
    ]


def caption(setting: Setting, answers: int) -> str:
    """What the columns are, with the number of items."""
    scenes = (
        f"d {setting.meant}: change of that foundation's centred log-ratio; d others: mean size of the other "
        "foundations' changes; d logit: change of the logit of wrongness over a foundation's scenes, mean and sd; SI: "
        "surgical informedness, both variants as published, two-sided over both signs and one-armed where one was "
        "measured (the two do not compare); gated selectivity: on target less a tenth of off target, "
        f"times coherence squared, over both signs or against base ({len(setting.scenes)} scenes; the sign that counts "
        f"is {'+' if setting.trait.intent > 0 else '-'}1, fixed by the trait). "
        if setting.meant
        else f"{setting.trait.name} means no moral foundation, so nothing is said about scenes. "
    )
    return (
        "Every intervention at alpha = 1, turned towards either persona, on the same items; 95 % intervals. Sorted by "
        "the trait's shift in the direction meant, averaged over the signs. trait over base: persona log-ratio, nats "
        f"per token, paired (n = {answers} answers). {scenes}margin: of the worst valid coherence signal, 1 as at "
        "base and 0 at its limit; KL on neutral text: to base, nats; seconds: fitting, calibration, measuring."
    )


def table(pairs: Sequence[Pair], setting: Setting) -> list[list[str]]:
    """Head and lines as text."""
    chosen = columns(setting, pairs)
    lines = [[column.title + _flag(column, setting.valid) for column in chosen]]
    for pair in pairs:
        for index, line in enumerate(pair.lines):
            lines.append(["" if column.of_pair and index else column.cell(pair, line) for column in chosen])
    return lines


def markdown(pairs: Sequence[Pair], setting: Setting, answers: int, doubts: Sequence[str]) -> str:
    """The table with its caption and what is not valid."""
    head, *lines = table(pairs, setting)
    note = f"\nNot valid for this model: {'; '.join(doubts)}.\n" if doubts else ""
    return f"{markdown_table(head, lines)}\n\n{caption(setting, answers)}\n{note}"


def table_csv(pairs: Sequence[Pair]) -> str:
    """Every number of every line, in full; NaN where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(_flat(pairs[0], pairs[0].lines[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_flat(pair, line) for pair in pairs for line in pair.lines)
    return text.getvalue()


def figure(pairs: Sequence[Pair]) -> bytes:
    """The trait's shift with its interval and the coherence margin, one line an intervention, both signs."""
    drawn, (shift, margin) = new_figure(1, 2, 1.4 + 0.36 * len(pairs))
    places = np.arange(len(pairs))[::-1]
    for place, pair in zip(places, pairs, strict=True):
        for line in pair.lines:
            colour, marker = (_UP, "o") if line.sign > 0 else (_DOWN, "s")
            y = place + 0.14 * line.sign
            if drawable(line.shift):
                below, above = arms(line.shift)
                shift.errorbar([line.shift.value], [y], xerr=[[below], [above]], fmt=marker, color=colour, markersize=5)
            margin.plot([line.coherence.margin], [y], marker=marker, color=colour, markersize=5)
    for axis in (shift, margin):
        axis.set_yticks(places, [folded(pair.name) for pair in pairs] if axis is shift else [""] * len(pairs))
        axis.set_ylim(-0.6, len(pairs) - 0.4)
        axis.axvline(0, color=MUTED, linestyle=DASHES, linewidth=1)
    shift.xaxis.set_major_locator(MaxNLocator(4))
    shift.set_xlabel("trait over base\n(nats per token)")
    margin.set_xlabel("coherence margin\n(0: at a limit)")
    legend(drawn, [legend_mark("o", _UP, "towards the trait"), legend_mark("s", _DOWN, "against it")], 2)
    return png(drawn)


def folded(name: str) -> str:
    """A long name (that of a run, say) on several lines, broken after a hyphen or underscore."""
    lines = [""]
    for part in re.findall(r"[^-_]+[-_]?|[-_]", name):
        if lines[-1] and len(lines[-1] + part) > _LONGEST:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _flag(column: Column, valid: Collection[str]) -> str:
    return f" ({NOT_VALID})" if column.signal and column.signal not in valid else ""


def _interval(entry: Estimate | None) -> str:
    if entry is None or math.isnan(entry.value):
        return "\N{EN DASH} (no item was scored)"
    return f"{entry.value:+.3f} [{entry.low:+.3f}, {entry.high:+.3f}]"


def _signal(signal: Signal) -> Callable[[Pair, Line], str]:
    def cell(pair: Pair, line: Line) -> str:
        if signal.name not in line.summary:
            return "\N{EN DASH} (not measured)"
        return _number(line.summary[signal.name].value, signal.digits, "no item was scored")

    return cell


def _number(value: float, digits: int, why: str) -> str:
    return f"\N{EN DASH} ({why})" if math.isnan(value) else f"{value:.{digits}f}"


def _logit(entry: DeltaLogit | None) -> str:
    if entry is None or math.isnan(entry.mean):
        return "\N{EN DASH} (no scene was scored)"
    return f"{entry.mean:+.2f} \N{PLUS-MINUS SIGN} {entry.sd:.2f}"


def _other_logits(line: Line, meant: str) -> str:
    values = [entry.mean for name, entry in line.logits.items() if name != meant and not math.isnan(entry.mean)]
    return f"{np.mean(values):+.2f} (mean of {len(values)})" if values else "\N{EN DASH} (no scene was scored)"


def _surgical(name: str, label: str) -> Callable[[Pair, Line], str]:
    def cell(pair: Pair, line: Line) -> str:
        entry = pair.surgical.get(name)
        if entry is None:
            return "\N{EN DASH} (the scenes have no human loadings)"
        if entry.label != label:
            return f"\N{EN DASH} ({entry.label})"
        return _number(
            entry.value, 1, "no scene was scored" if not entry.n else "base calls all of them wrong, or none"
        )

    return cell


def _side(pair: Pair) -> str:
    return f" ({pair.other_side} as the other side)" if pair.other_side else ""


def _flat(pair: Pair, line: Line) -> dict[str, object]:
    numbers: dict[str, object] = {
        "intervention": line.name,
        "sign": line.sign,
        "c_star": "" if line.c_star is None else f"{line.c_star:.6g}",
        "p95_kl": f"{line.spent:.6g}",
        "on_target": "" if line.on_target is None else int(line.on_target),
    }
    estimates: dict[str, Estimate | None] = {
        "trait_shift": line.shift,
        "target_shift": line.target,
    } | {signal.name: line.summary.get(signal.name) for signal in SHOWN}
    for name, entry in estimates.items():
        for part in ("value", "low", "high", "n"):
            numbers[f"{name}_{part}"] = "" if entry is None else f"{getattr(entry, part):.6g}"
    numbers["off_target"] = f"{line.off_target:.6g}"
    for name in FOUNDATIONS:
        logit = line.logits.get(name)
        numbers[f"d_logit_{name}"] = "" if logit is None else f"{logit.mean:.6g}"
        numbers[f"d_logit_{name}_sd"] = "" if logit is None else f"{logit.sd:.6g}"
    for name in VARIANTS:
        surgical = pair.surgical.get(name)
        for label in LABELS:
            shown = surgical is not None and surgical.label == label
            numbers[f"si {label} ({name})"] = f"{surgical.value:.6g}" if surgical is not None and shown else ""
    return numbers | {
        "gated_selectivity": f"{pair.selectivity:.6g}",
        "other_side": pair.other_side,
        "margin": f"{line.coherence.margin:.6g}",
        "worst": line.coherence.worst,
        "seconds": f"{line.seconds:.3f}",
    }
