"""The figure of all rounds of all arms: the trait against drift and margin, and arms at equal drift and trait."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from heal.report.canvas import Area, Canvas, Shape
from heal.report.plot import NARROW, WIDE, Entry, Grid, Panel, Scale, legend, said
from heal.studies.comparison.arms import Arm, Settings
from heal.studies.comparison.best import choice_of
from heal.studies.comparison.figure import looks
from heal.studies.comparison.fronts import (
    Matched,
    Measure,
    Step,
    at_equal_measure,
    at_equal_trait,
    drift,
    margin,
    stage,
    way,
)
from heal.studies.comparison.runs import BASE, Run

_SHIFT = "trait over base, nats/token"


_Looks = dict[int, tuple[str, Shape]]  # of an arm, by its id


@dataclass(frozen=True)
class _Drawn:
    """A run with its way against one measure, and its best round from 1."""

    arm: Arm
    run: Run
    steps: list[Step]
    best: int | None


@dataclass(frozen=True)
class _Reference:
    """A stage that was not trained: the trait over base and a measure there, over runs."""

    name: str
    shift: float
    value: float


@dataclass(frozen=True)
class _Matching:
    """A panel of differences: its title, its axes, and what they are."""

    title: str
    x_label: str
    y_label: str
    found: list[Matched]


@dataclass(frozen=True)
class Fronts:
    """Everything that the figure shows, computed once for all its widths."""

    trained: list[Arm]
    ways: dict[str, list[_Drawn]]
    references: dict[str, list[_Reference]]
    measures: dict[str, Measure]
    matchings: list[_Matching]


def fronts(arms: Sequence[Arm], settings: Settings) -> Fronts:
    """The ways of all trained arms, what was not trained for reference, and each trained arm against the first one."""
    trained = [arm for arm in arms if arm.stage is None]
    runs = [run for arm in trained for run in arm.runs]
    moved = drift(runs)
    measures = {measure.name: measure for measure in ([moved] if moved else []) + [margin()]}
    best = {id(run): choice_of(run, settings) for run in runs}
    ways = {
        name: [
            _Drawn(arm, run, way(run, measure), choice.index + 1 if (choice := best[id(run)]) else None)
            for arm in trained
            for run in arm.runs
        ]
        for name, measure in measures.items()
    }
    matchings, others = [], trained[1:]
    for name, measure in measures.items():
        if name == "drift":
            found = [at_equal_measure(trained[0], arm, measure, settings) for arm in others]
            matchings.append(
                _Matching("The trait at equal drift", f"drift: {measure.label}", "trait, difference", found)
            )
        found = [at_equal_trait(trained[0], arm, measure, settings) for arm in others]
        title = f"{name.capitalize()} at equal trait"
        matchings.append(_Matching(title, _SHIFT, f"{name}, difference", found))
    shown = [matching for matching in matchings if any(one.levels for one in matching.found)]
    references = {name: _references(arms, measure) for name, measure in measures.items()}
    return Fronts(trained, ways, references, measures, shown)


def _references(arms: Sequence[Arm], measure: Measure) -> list[_Reference]:
    """Prompted and raw steering, where they were measured."""
    found = []
    for arm in arms:
        if arm.stage in (None, BASE):
            continue
        steps = [stage(run, arm.stage, measure) for run in arm.runs]
        shift, value = (sum(numbers) / len(steps) for numbers in zip(*steps, strict=True))
        if math.isfinite(shift) and math.isfinite(value):
            found.append(_Reference(arm.name, shift, value))
    return found


def fronts_figure(fronts: Fronts, width: float = WIDE) -> Canvas:
    """A line a run, its best round ringed; below, differences to the first arm with bands over prompts and seeds."""
    canvas = Canvas(width, 0)
    look: _Looks = {id(arm): look for arm, look in zip(fronts.trained, looks(fronts.trained), strict=True)}
    first = " (first)" if fronts.matchings else ""
    entries = [
        Entry(arm.name + first * (arm is fronts.trained[0]), *look[id(arm)], line=True) for arm in fronts.trained
    ]
    entries.append(Entry("best round of a run", "ink", "circle", hollow=True, radius=6.7))
    entries += [Entry(name, "ink", shape, radius=4.5) for name, shape in _stages(fronts)]
    top = legend(canvas, [*entries, Entry("past a limit", "past", "square")])
    grid = Grid(canvas, top, 2 if width > NARROW else 1, 300.0)
    for name, measure in fronts.measures.items():
        _draw_ways(grid, measure, fronts.ways[name], fronts.references[name], look)
    for matching in fronts.matchings:
        _draw_matching(grid, matching, look)
    canvas.height = grid.height
    return canvas


def _stages(fronts: Fronts) -> list[tuple[str, Shape]]:
    """What is drawn for reference, and its marks."""
    names = dict.fromkeys(each.name for found in fronts.references.values() for each in found)
    kinds = dict.fromkeys("raw steering" if name.startswith("steered") else name for name in names)
    return [(kind, _mark_of(kind)) for kind in kinds]


def _mark_of(name: str) -> Shape:
    return "diamond" if name.startswith("prompted") else "cross"


def _draw_ways(
    grid: Grid, measure: Measure, ways: Sequence[_Drawn], references: Sequence[_Reference], looks: _Looks
) -> None:
    """Every run from base on, and what was not trained beside them."""
    steps = [step for drawn in ways for step in drawn.steps]
    is_margin = measure.name == "margin"
    values = [*(step.value for step in steps), *(each.value for each in references), *([0.0] if is_margin else [])]
    x = Scale.around(values, 0.05, inverted=is_margin)
    x_label = measure.label if is_margin else f"drift: {measure.label}"
    panel = grid.panel(x, Scale.around([*(step.shift for step in steps), *(each.shift for each in references)]))
    title = f"The trait against {'the coherence margin' if is_margin else 'drift'}"
    panel.axes(x_label=x_label, y_label=_SHIFT, title=[title])
    if is_margin:
        _shade(panel)
    for drawn in ways:
        colour, shape = looks[id(drawn.arm)]
        panel.line([(step.value, step.shift) for step in drawn.steps], colour, 1.1, opacity=0.55)
    for drawn in ways:
        colour, shape = looks[id(drawn.arm)]
        for step in drawn.steps:
            if step.number == drawn.best:
                panel.mark(step.value, step.shift, "circle", "ink", radius=6.7, hollow=True, edge=1.2)
            stage = f"round {step.number}{', its best' if step.number == drawn.best else ''}" if step.number else "base"
            says = (
                f"{drawn.arm.name}, seed {drawn.run.keys['run.seed']}, {stage}: trait {step.shift:+.3f} over base, "
                f"{measure.name} {step.value:.2f}"
            ).replace("-", "\N{MINUS SIGN}")
            panel.mark(step.value, step.shift, shape, colour, says, radius=2.8 if step.number != drawn.best else 3.6)

    for each in references:
        says = f"{each.name}: trait {each.shift:+.3f} over base, {measure.name} {each.value:.2f}"
        panel.mark(each.value, each.shift, _mark_of(each.name), "ink", says.replace("-", "\N{MINUS SIGN}"), radius=4)


def _shade(panel: Panel) -> None:
    """What is past a limit, on an axis that runs to the right."""
    (edge, top), (right, bottom) = panel.at(0, panel.y.high), panel.at(panel.x.low, panel.y.low)
    panel.canvas.add(Area([(edge, bottom), (right, bottom), (right, top), (edge, top)], "past", 0.12))


def _draw_matching(grid: Grid, matching: _Matching, looks: _Looks) -> None:
    """Each arm's difference to the first, with its band."""
    found = [one for one in matching.found if one.levels]
    ends = [end for one in found for each in one.differences for end in (each.low, each.high)]
    levels = [level for one in found for level in one.levels]
    panel = grid.panel(Scale(0, max(levels)), Scale.around([0.0, *ends]))
    panel.axes(x_label=matching.x_label, y_label=matching.y_label, title=[matching.title])
    panel.across(0, "ink", 1)
    for one in found:
        colour, _ = looks[id(one.arm)]
        points = list(zip(one.levels, one.differences, strict=True))
        panel.band([(level, each.low, each.high) for level, each in points], colour, 0.12)
    for one in found:
        colour, shape = looks[id(one.arm)]
        points = list(zip(one.levels, one.differences, strict=True))
        panel.line([(level, each.value) for level, each in points], colour, 1.7)
        for level, each in points[:: max(1, len(points) // 8)]:
            says = said(f"{one.arm.name} at {level:.3g}: difference", each)
            panel.mark(level, each.value, shape, colour, says, radius=2.8)
