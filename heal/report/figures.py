"""The report's figures.

Rounds run along one map of hues, in their order; no text of the user or the model is drawn.
"""

from collections.abc import Sequence

from heal.dose.calibration import PathDivergence
from heal.evaluation.signal import Signal, described
from heal.report.canvas import Canvas, round_colours
from heal.report.plot import DASHES, DOTS, NARROW, WIDE, Entry, Panel, Scale, arms, drawable, legend, said, wrapped
from heal.report.positions import positions
from heal.report.results import Results, Round
from heal.report.signals import decides, limit_at_base, moved
from heal.report.training import training
from heal.report.trajectory import trajectory


def draw(results: Results, width: float = WIDE) -> dict[str, Canvas]:
    """Every figure by name, `width` pixels wide; side effects and positions where there is something to draw."""
    moving = [signal for signal in described(results.base) if moved(results, signal)]
    effects = [signal for signal in moving if not decides(signal) and signal.name in results.valid]
    figures = {
        "trajectory": trajectory(results, width),
        "signals": signals(results, [signal for signal in moving if decides(signal)], width),
        "side-effects": signals(results, effects, width) if effects else None,
        "positions": positions(results, width),
        "calibration": calibration(results, width),
        "training": training(results, width),
    }
    return {name: canvas for name, canvas in figures.items() if canvas is not None}


def signals(results: Results, shown: Sequence[Signal], width: float = WIDE) -> Canvas:
    """Each signal by round, with its interval and its limit: steered and healed against base and prompted."""
    columns = 3 if width > NARROW else 2  # of small panels, one a signal
    rows = max(-(-len(shown) // columns), 1)
    canvas = Canvas(width, 0)
    entries = [
        Entry("healed (base at the left)", "ink", "circle", line=True),
        *([Entry("steered at c*", "ink", "circle", hollow=True)] if results.last.steered else []),
        Entry("prompted, with interval", "prompted", line=True),
    ]
    if any(signal.limit is not None for signal in shown):
        entries.append(Entry("limit of coherence", "past", line=True, dash=DASHES))
    if any(signal.chance is not None for signal in shown):
        entries.append(Entry("chance", "muted", line=True, dash=DOTS))
    top = legend(canvas, entries)
    wide, high = width / columns, 178.0 if width > NARROW else 158.0
    for place, signal in enumerate(shown):
        left, upper = wide * (place % columns), top + high * (place // columns)
        _draw_signal(canvas, (left + 42, upper + 34, left + wide - 8, upper + high - 24), signal, results, width)
    canvas.height = top + high * rows
    return canvas


def _draw_signal(
    canvas: Canvas, box: tuple[float, float, float, float], signal: Signal, results: Results, width: float
) -> None:
    valid = signal.name in results.valid or signal.name not in results.validity
    note = (signal.note if width > NARROW else "") if valid else "not valid here"
    size = 10.5 if width > NARROW else 10.0
    title = [signal.title, note] if note else wrapped(signal.title, size, box[2] - box[0])
    prompted, base = results.prompted.get(signal.name), results.base.get(signal.name)
    rounds, name = results.rounds, signal.name
    steered = [(f"round {r.number}, steered", r.number + 0.12, r.steered.get(name)) for r in rounds if r.steered]
    healed = [(f"round {r.number}, healed", r.number - 0.12, r.healed.get(name)) for r in rounds]
    healed = [("base", 0.0, base), *healed]
    edge, count = limit_at_base(results, signal), len(results.rounds)
    drawn = [estimate for _, _, estimate in (*steered, *healed) if drawable(estimate)]
    drawn += [prompted] if drawable(prompted) else []
    ends = [value for each in drawn for value in (each.value - arms(each)[0], each.value + arms(each)[1])]
    ends += [] if edge is None else [edge]
    ends += [0.0, 1.0] if signal.unit == "share" else []
    log = signal.limit is not None and signal.limit.log and all(end > 0 for end in ends)
    panel = Panel(canvas, *box, Scale(-0.5, count + 0.5), Scale.around(ends, 0.09, log))
    every = 1 + count // (9 if width > NARROW else 5)
    ticks = dict(zip(range(count + 1), ["base", *(str(r.number) for r in results.rounds)], strict=True))
    shown = {float(number): text for number, text in ticks.items() if number % every == 0}
    panel.axes(shown, size=size, title=title, colour="ink" if valid else "muted", grid_x=False)
    if edge is not None and signal.limit is not None:
        ceiling = signal.limit.kind == "ceiling"
        panel.span(edge if ceiling else panel.y.low, panel.y.high if ceiling else edge, "past", 0.14)
        panel.across(edge, "past", dash=DASHES)
    if signal.chance is not None and panel.y.low <= signal.chance <= panel.y.high:
        panel.across(signal.chance, "muted", dash=DOTS)
    if drawable(prompted):
        below, above = arms(prompted)
        panel.span(prompted.value - below, prompted.value + above, "prompted", 0.12)
        panel.across(prompted.value, "prompted", 1.3)
        panel.mark(panel.x.high, prompted.value, "bar", "prompted", said("prompted", prompted, signal.digits), radius=3)
    panel.line([(x, estimate.value) for _, x, estimate in healed if drawable(estimate)], "ink")
    for series, hollow in ((steered, True), (healed, False)):
        for stage, x, estimate in series:
            if drawable(estimate):
                says = said(stage, estimate, signal.digits)
                panel.interval(x, estimate, "ink")
                panel.mark(x, estimate.value, "circle", "ink", says, radius=3.2, hollow=hollow)


def calibration(results: Results, width: float = WIDE) -> Canvas:
    """p95 and p50 of the per-token KL against the coefficient, the target, `c_star`, and the audit."""
    settings, colours = results.recipe.calibration, round_colours(len(results.rounds))
    canvas = Canvas(width, 440 if width > NARROW else 400)
    top = legend(
        canvas,
        [
            Entry("95th percentile", "muted", "circle", line=True),
            Entry("median", "muted", "circle", line=True, dash=DOTS, radius=2),
            Entry("target ± tolerance", "muted", line=True, dash=DASHES),
            Entry("c*", "muted", "star", radius=6),
            Entry("audit at c*, held-out prompts", "muted", "diamond", hollow=True),
            *(
                Entry(f"round {finished.number}", colour, line=True, width=3)
                for finished, colour in zip(results.rounds, colours, strict=True)
            ),
        ],
    )
    points = [point for finished in results.rounds for point in finished.calibration.history if point.c > 0]
    audits = [finished.calibration.audit for finished in results.rounds if finished.calibration.audit]
    low, high = max(settings.target - settings.tolerance, settings.target * 0.01), settings.target + settings.tolerance
    stars = [finished.calibration.c_star for finished in results.rounds]
    panel = Panel(
        canvas, 62, top + 10, width - 12, canvas.height - 44,
        Scale.around([*(point.c for point in points), *stars], log=True),
        Scale.around([low, high, *(value for p in (*points, *audits) for value in (p.p50, p.p95))], log=True),
    )  # fmt: skip
    panel.axes(x_label="coefficient c (log)", y_label="KL(on || off) per token, nats (log)")
    panel.span(low, high, "muted", 0.13)
    panel.across(settings.target, "muted", dash=DASHES)
    for finished, colour in zip(results.rounds, colours, strict=True):
        _draw_search(panel, finished, colour)
    return canvas


def _draw_search(panel: Panel, finished: Round, colour: str) -> None:
    """One round's evaluations, its c* and its audit."""
    dose, name = finished.calibration, f"round {finished.number}"
    points = sorted((point for point in dose.history if point.c > 0), key=lambda point: point.c)
    panel.line([(point.c, point.p50) for point in points], colour, 1.1, dash=DOTS)
    panel.line([(point.c, point.p95) for point in points], colour, 1.6)
    for point in points:
        panel.mark(point.c, point.p50, "circle", colour, _at(f"{name}, median", point.c, point.p50), radius=1.6)
        panel.mark(point.c, point.p95, "circle", colour, _at(f"{name}, p95", point.c, point.p95), radius=3.2)
    if dose.c_star > 0:
        panel.mark(dose.c_star, dose.value, "star", colour, _at(f"{name}, c*", dose.c_star, dose.value), radius=7)
        audit: list[PathDivergence] = [] if dose.audit is None else [dose.audit]
        for point in audit:
            says = _at(f"{name}, audit", dose.c_star, point.p95)
            panel.mark(dose.c_star, point.p95, "diamond", colour, says, radius=3.6, hollow=True)


def _at(name: str, c: float, kl: float) -> str:
    return f"{name}: {kl:.3g} nats at c = {c:.3g}"
