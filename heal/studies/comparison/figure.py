"""The figure of a comparison: the arms' trajectories, trait against coherence, and both round by round."""

from collections.abc import Sequence
from itertools import cycle

from heal.evaluation.signal import TRAIT, Signal, signals
from heal.evaluation.stats import Estimate
from heal.report.canvas import COLOURS, MARKS, Canvas, Shape, Text
from heal.report.plot import DASHES, DOTS, NARROW, WIDE, Entry, Grid, Panel, Scale, arms, drawable, legend, said
from heal.studies.comparison.arms import Arm, Settings, drawn
from heal.studies.comparison.runs import BASE

Look = tuple[str, Shape]  # colour and mark
_Marks = Sequence[tuple[Arm, Estimate, Estimate]]  # what is not trained, with trait and signal

_STAGE_MARKS: dict[str, Shape] = {"base": "square", "prompted": "diamond"}
_OTHERS = ("ink", "#8a6d00", "#a0522d", "#b8629a")  # of what is not trained, by trait, model or measure


def looks(trained: Sequence[Arm]) -> list[Look]:
    """Of each arm, in every figure."""
    return [look for _, look in zip(trained, zip(cycle(COLOURS), cycle(MARKS), strict=False), strict=False)]


def figure(compared: Sequence[Arm], settings: Settings, width: float = WIDE) -> Canvas:
    """The trait against coherence, one line an arm; then the trait and coherence by round, with a band over seeds.

    Coherence is drawn as the signals whose descriptions put them into trajectories, if any arm has them. Base, prompted
    and raw steering are marks of their own, one kind for each trait, model or measure among them.
    """
    against = [signal for signal in drawn() if any(signal.name in arm.signals for arm in compared)]
    trained, others = ([arm for arm in compared if (arm.stage is None) == is_trained] for is_trained in (True, False))
    named = list(zip(trained, looks(trained), strict=True))
    kinds = dict(zip(dict.fromkeys(_of(arm) for arm in others), cycle(_OTHERS), strict=False))
    canvas = Canvas(width, 0)
    entries = [Entry(arm.name, *look, line=True) for arm, look in named]
    top = legend(canvas, [*entries, *_entries(others, kinds), Entry("last round", "muted", "circle", radius=5)])
    grid = Grid(canvas, top, 2 if width > NARROW else 1, 310.0)
    trait = {id(arm): _series(arm, TRAIT, settings) for arm, _ in named}
    for signal in against:
        series = {id(arm): _series(arm, signal.name, settings) for arm, _ in named}
        shown: _Marks = [
            (arm, x, y)
            for arm in others
            if drawable(x := arm.estimate(TRAIT, arm.last, settings))
            and drawable(y := arm.estimate(signal.name, arm.last, settings))
        ]
        panel = _ways_panel(grid, signal, [*trait.values()], [*series.values()], shown)
        for arm, look in named:
            _way(panel, arm, trait[id(arm)], series[id(arm)], look, signal)
        _untrained(panel, shown, kinds, signal)
    for signal in (signals()[TRAIT], *against):
        _courses(grid, signal, [(arm, look, _series(arm, signal.name, settings)) for arm, look in named])
    canvas.height = grid.height
    return canvas


def _series(arm: Arm, name: str, settings: Settings) -> list[Estimate | None]:
    """A signal at base and after each round; None where a run lacks it."""
    return [arm.estimate(name, where, settings) for where in [BASE, *range(arm.rounds)]]


def _scale(signal: Signal, values: Sequence[float], room: float = 0.07) -> Scale:
    """Logarithmic where the signal's distances are ratios, upside down where lower is better."""
    log = signal.limit is not None and signal.limit.log and all(value > 0 for value in values)
    return Scale.around(values, room, log, inverted=signal.better == "lower")


def _named(signal: Signal, scale: Scale) -> str:
    notes = [text for text, holds in (("log", scale.log), ("inverted", scale.inverted)) if holds]
    return signal.term + (f" ({', '.join(notes)})" if notes else "")


def _ways_panel(
    grid: Grid,
    signal: Signal,
    trait: Sequence[Sequence[Estimate | None]],
    series: Sequence[Sequence[Estimate | None]],
    shown: _Marks,
) -> Panel:
    along = [each.value for of_arm in trait for each in of_arm if drawable(each)] + [x.value for _, x, _ in shown]
    up = [each.value for of_arm in series for each in of_arm if drawable(each)] + [y.value for _, _, y in shown]
    panel = grid.panel(Scale.around(along), _scale(signal, up))
    panel.axes(
        x_label=signals()[TRAIT].note, y_label=_named(signal, panel.y), title=[f"The trait against {signal.term}"]
    )
    return panel


def _way(
    panel: Panel,
    arm: Arm,
    trait: Sequence[Estimate | None],
    series: Sequence[Estimate | None],
    look: Look,
    signal: Signal,
) -> None:
    """An arm's way from base on, its last round larger."""
    colour, shape = look
    points = [
        (number, x, y) for number, (x, y) in enumerate(zip(trait, series, strict=True)) if drawable(x) and drawable(y)
    ]
    panel.line([(x.value, y.value) for _, x, y in points], colour, 1.5)
    for number, x, y in points:
        where = f"round {number}" if number else "base"
        says = f"{said(f'{arm.name}, {where}: trait', x)}; {said(signal.term, y, signal.digits)}"
        panel.mark(x.value, y.value, shape, colour, says, radius=5.0 if number == len(trait) - 1 else 2.6)


def _courses(grid: Grid, signal: Signal, named: Sequence[tuple[Arm, Look, Sequence[Estimate | None]]]) -> None:
    """A signal by round, with a band for each arm."""
    found = [
        (arm, look, [(number, each) for number, each in enumerate(series) if drawable(each)])
        for arm, look, series in named
    ]
    ends = [
        end
        for _, _, points in found
        for _, each in points
        for end in (each.value - arms(each)[0], each.value + arms(each)[1])
    ]
    last = max((number for _, _, points in found for number, _ in points), default=1)
    panel = grid.panel(Scale(-0.2, last + 0.2), _scale(signal, ends))
    every = 1 + last // 10
    ticks = {float(number): str(number) for number in range(0, last + 1, every)}
    panel.axes(ticks, x_label="round", y_label=_named(signal, panel.y), title=[f"{signal.title} by round"])
    if signal.role == "trait":
        for base in {round(points[0][1].value, 9) for _, _, points in found if points}:
            panel.across(base, "muted", dash=DASHES)
    for _, (colour, _), points in found:
        panel.band([(number, each.low, each.high) for number, each in points], colour, 0.12)
    for arm, (colour, shape), points in found:
        panel.line([(number, each.value) for number, each in points], colour, 1.5)
        for number, each in points:
            says = said(f"{arm.name}, {f'round {number}' if number else 'base'}", each, signal.digits)
            panel.mark(number, each.value, shape, colour, says, radius=2.8)


def _entries(others: Sequence[Arm], kinds: dict[str, str]) -> list[Entry]:
    """The legend's of what is not trained."""
    marks = [
        Entry(arm.name, kinds[_of(arm)], _STAGE_MARKS[arm.stage], hollow=_of(arm) != next(iter(kinds)), radius=5)
        for arm in others
        if arm.stage in _STAGE_MARKS
    ]
    steered = dict.fromkeys(_of(arm) for arm in others if arm.stage not in _STAGE_MARKS)
    return marks + [
        Entry(f"raw steering, multiples of c*{of}", kinds[of], "cross", line=True, dash=DOTS) for of in steered
    ]


def _untrained(panel: Panel, shown: _Marks, kinds: dict[str, str], signal: Signal) -> None:
    """Base, prompted and raw steering."""
    for of, colour in kinds.items():
        steered = [each for each in shown if _of(each[0]) == of and each[0].stage not in _STAGE_MARKS]
        panel.line([(x.value, y.value) for _, x, y in steered], colour, 1.1, dash=DOTS)
    for arm, x, y in shown:
        stage, colour = arm.stage or "", kinds[_of(arm)]
        says = f"{said(f'{arm.name}: trait', x)}; {said(signal.term, y, signal.digits)}"
        if stage in _STAGE_MARKS:
            hollow = _of(arm) != next(iter(kinds))
            panel.mark(x.value, y.value, _STAGE_MARKS[stage], colour, says, radius=5, hollow=hollow)
        else:
            panel.mark(x.value, y.value, "cross", colour, says, radius=3.4)
            left, upper = panel.at(x.value, y.value)
            panel.canvas.add(Text((left + 6, upper - 5), stage.split()[-2], 9, "muted", halo=True))


def _of(arm: Arm) -> str:
    """What an untrained arm's name says after its stage: what it differs in from others of that stage."""
    return arm.name.removeprefix(arm.stage or "")
