"""The figure of healing: cross-entropy, divergence and the barrier, step by step over the rounds."""

import math
from collections.abc import Sequence

from heal.healing.divergences import divergence_named
from heal.healing.log import StepLog
from heal.report.canvas import Canvas, round_colours
from heal.report.plot import DASHES, DOTS, NARROW, WIDE, Entry, Panel, Scale, legend
from heal.report.results import Results, Round

_NAMES = {"ce": "CE, nats/token", "D_mean": "D, nats", "barrier_on": "barrier on, fraction", "strength": "lambda"}


def training(results: Results, width: float = WIDE) -> Canvas:
    """CE and, with a barrier, D, the fraction of completions whose barrier is on, and a lambda that follows D."""
    settings, count = results.recipe.heal, len(results.rounds)
    barrier = divergence_named(settings.barrier.divergence).needs_reference
    follows = any("strength" in log.values for finished in results.rounds for log in finished.training)
    names = ("ce", *(["D_mean", "barrier_on"] if barrier else []), *(["strength"] if follows else []))
    canvas = Canvas(width, 0)
    entries = [
        Entry("step", "muted", line=True, width=1, opacity=0.5),
        Entry("mean of an epoch", "muted", line=True, width=2.4),
        Entry("validation", "muted", "diamond", hollow=True),
    ]
    if barrier:
        entries.append(Entry("largest D of a step", "muted", line=True, dash=DOTS))
        entries.append(Entry("tau", "muted", line=True, dash=DASHES))
    top = legend(canvas, entries) + 10
    colours = round_colours(count)
    for name in names:
        high = 190.0 if name in ("ce", "D_mean") else 130.0
        panel = Panel(
            canvas, 58, top, width - 10, top + high, Scale(-0.015 * count, 1.015 * count), _scale(results, name)
        )
        last = name == names[-1]
        few = count <= (8 if width > NARROW else 4)
        ticks = {r.number - 0.5: f"round {r.number}" if few else str(r.number) for r in results.rounds}
        panel.axes(ticks if last else {}, y_label=_NAMES[name], grid_x=False)
        for edge in range(1, count):
            panel.line([(edge, panel.y.low), (edge, panel.y.high)], "muted", 0.6, opacity=0.5)
        if name == "D_mean":
            panel.across(settings.barrier.tau, "muted", dash=DASHES)
        for finished, colour in zip(results.rounds, colours, strict=True):
            _draw(panel, name, finished, settings.epochs, colour)
        top += high + 16
    canvas.height = top + 16
    return canvas


def _scale(results: Results, name: str) -> Scale:
    if name == "barrier_on":
        return Scale(-0.05, 1.05)
    logs = [log for finished in results.rounds for log in finished.training]
    values = [log.values.get(name, math.nan) for log in logs]
    if name == "D_mean":
        values += [0.0, results.recipe.heal.barrier.tau, *(log.values.get("D_max", math.nan) for log in logs)]
    return Scale.around([0.0, *values] if name == "strength" else values, 0.05)


def _draw(panel: Panel, name: str, finished: Round, epochs: int, colour: str) -> None:
    """One round's steps, the mean of each epoch, and the validations."""
    start = finished.number - 1  # on an axis that counts rounds, round 1 takes up 0 to 1
    steps = [log for log in finished.training if log.phase == "train" and "ce" in log.values]
    panel.line(_points(start, steps, name, epochs), colour, 1, opacity=0.45)
    if name == "D_mean":
        panel.line(_points(start, steps, "D_max", epochs), colour, 1, dash=DOTS)
    for epoch in range(epochs):
        within = [log.values.get(name, math.nan) for log in steps if epoch < log.epoch <= epoch + 1 + 1e-9]
        if within:
            mean, (left, right) = sum(within) / len(within), (start + epoch / epochs, start + (epoch + 1) / epochs)
            panel.line([(left, mean), (right, mean)], colour, 2.4)
            says = f"round {finished.number}, epoch {epoch + 1}: {mean:.3f}"
            panel.mark((left + right) / 2, mean, "circle", colour, says, radius=1.2, edge=0)
    for log in (log for log in finished.training if log.phase == "eval" and name in log.values):
        says = f"round {finished.number}, validation after epoch {log.epoch:g}: {log.values[name]:.3f}"
        panel.mark(start + log.epoch / epochs, log.values[name], "diamond", colour, says, radius=3.2, hollow=True)


def _points(start: int, logs: Sequence[StepLog], name: str, epochs: int) -> list[tuple[float, float]]:
    return [(start + log.epoch / epochs, log.values.get(name, math.nan)) for log in logs]
