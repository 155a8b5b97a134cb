"""The figure of drift along a text: where in an answer the student leaves base, round by round."""

from heal.evaluation.metrics import PositionSpread
from heal.report.canvas import Canvas, round_colours
from heal.report.plot import NARROW, WIDE, Entry, Panel, Scale, legend
from heal.report.results import Results

_TEXTS = {"answers": "held-out answers", "completions": "kept completions"}
_FIGURES = {"mean": "mean", "p95": "95th percentile"}


def positions(results: Results, width: float = WIDE) -> Canvas | None:
    """Mean and p95 of KL(student || base) by position in answers and completions; None where that was not measured."""
    rounds = [
        (finished.number, drift.by_position, colour)
        for finished, colour in zip(results.rounds, round_colours(len(results.rounds)), strict=True)
        if (drift := finished.metrics.drift) is not None and drift.by_position
    ]
    texts = [name for name in _TEXTS if any(name in by_text for _, by_text, _ in rounds)]
    if not texts:
        return None
    canvas, wide = Canvas(width, 0), width > NARROW
    top = legend(canvas, [Entry(f"round {number}", colour, line=True, width=3) for number, _, colour in rounds])
    columns = len(texts) if wide else 1
    across, high = width / columns, 205.0
    for place, (figure, name) in enumerate((figure, name) for figure in _FIGURES for name in texts):
        left, upper = across * (place % columns), top + high * (place // columns)
        series = [(number, by_text[name], colour) for number, by_text, colour in rounds if name in by_text]
        ends = max(spread.last for _, along, _ in series for spread in along)
        kl = [0.0, *(getattr(spread, figure) for _, along, _ in series for spread in along)]
        panel = Panel(
            canvas, left + 48, upper + 26, left + across - 10, upper + high - 38, Scale(0, ends), Scale.around(kl)
        )
        panel.axes(x_label="tokens from its beginning", title=[f"{_FIGURES[figure]}, nats, {_TEXTS[name]}"], size=10.5)
        for number, along, colour in series:
            panel.line([(_middle(spread), getattr(spread, figure)) for spread in along], colour)
            for spread in along:
                says = (
                    f"round {number}, tokens {spread.first} to {spread.last}: mean {spread.mean:.3f}, "
                    f"p95 {spread.p95:.3f} nats (n = {spread.n})"
                )
                panel.mark(_middle(spread), getattr(spread, figure), "circle", colour, says, radius=2.6)
    canvas.height = top + high * (2 * len(texts) / columns)
    return canvas


def _middle(spread: PositionSpread) -> float:
    return (spread.first - 1 + spread.last) / 2
