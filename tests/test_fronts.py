"""Arms at equal drift and at equal trait, and at their best rounds, however many rounds each run went."""

import math
from dataclasses import replace

import numpy as np
import pytest

from heal.evaluation.signal import TRAIT
from heal.report.canvas import Mark
from heal.report.plot import NARROW, WIDE
from heal.studies.comparison.arms import Arm, Settings, lines
from heal.studies.comparison.best import best_lines
from heal.studies.comparison.fronts import NEUTRAL, arrival, at_equal_measure, at_equal_trait, drift, margin
from heal.studies.comparison.fronts_figure import fronts, fronts_figure
from heal.studies.comparison.runs import Run
from heal.studies.comparison.show import best_cells, best_header
from tests.cases import case

SETTINGS = Settings(resamples=300)
ITEMS = np.array([-0.5, -0.2, 0.0, 0.1, 0.6])  # of base, whose prompts differ far more than rounds do
PROMPTS = [f"prompt {item}" for item in range(len(ITEMS))]


def run(seed: int, shifts: list[float], drifts: list[float], margins: list[float], broken_from: int = 99) -> Run:
    """A run whose rounds shift the trait of every prompt by so much."""
    rounds = range(len(shifts))
    return Run(
        name=f"run {seed}",
        keys={"run.seed": seed, "trait": "warm", "recipe": "x"},
        prompts=PROMPTS,
        signals={TRAIT: "mean", NEUTRAL: "mean"},
        stages={"base": {TRAIT: [*ITEMS], NEUTRAL: [0.0] * 2}},
        healed=[{TRAIT: [*(ITEMS + shifts[index])], NEUTRAL: [3 * drifts[index]] * 2} for index in rounds],
        margins={"base": 1.0} | {str(index): margins[index] for index in rounds},
        verdicts=["incoherent" if index >= broken_from else "holds" for index in rounds],
        validity={},
        drifts=list(drifts),
    )


def arms(seeds: int = 2) -> tuple[Arm, Arm]:
    """One arm that stopped after two rounds, and one that went four, twice as far in drift for the same trait."""
    early = [run(seed, [0.1, 0.2], [0.5, 1.0], [0.9, 0.7]) for seed in range(seeds)]
    late = [
        run(seed, [0.1, 0.2, 0.3, 0.25], [1.0, 2.0, 3.0, 5.0], [0.8, 0.4, 0.1, -1.0], broken_from=3)
        for seed in range(seeds)
    ]
    return Arm("early", tuple(early), 2), Arm("late", tuple(late), 4)


def test_arms_are_matched_where_their_ways_first_come_equally_far() -> None:
    early, late = arms()
    moved = drift([*early.runs, *late.runs])
    assert moved is not None
    found = at_equal_measure(early, late, moved, SETTINGS)
    assert found.levels[-1] == 1.0  # the farthest that both arms went
    for level, difference in zip(found.levels, found.differences, strict=True):
        assert difference.value == pytest.approx(0.1 * level - 0.2 * level)
        assert difference.high - difference.low < 1e-9  # paired: prompts differ, but in both arms alike
    for measure, slopes in ((moved, (5.0, 10.0)), (margin(), None)):
        found = at_equal_trait(early, late, measure, SETTINGS)
        assert found.levels[-1] == pytest.approx(0.2)
        if slopes:
            expected = [(slopes[1] - slopes[0]) * level for level in found.levels]
        else:
            ways = [np.interp(found.levels, [0, 0.1, 0.2], values) for values in ((1, 0.9, 0.7), (1, 0.8, 0.4))]
            expected = (ways[1] - ways[0]).tolist()
        assert [difference.value for difference in found.differences] == pytest.approx(expected), measure.name


def test_what_differs_by_prompt_or_seed_widens_the_band_and_the_first_arrival_counts() -> None:
    early, late = arms()
    noisy = replace(early, runs=(early.runs[0], run(1, [0.3, 0.4], [0.5, 1.0], [0.9, 0.7])))
    moved = drift([*noisy.runs, *late.runs])
    assert moved is not None
    widest = max(each.high - each.low for each in at_equal_measure(late, noisy, moved, SETTINGS).differences)
    assert 0.15 < widest < 0.25  # the two seeds are 0.2 apart

    asked = replace(late.runs[0], prompts=PROMPTS[:2], keys=late.runs[0].keys | {"trait": "cold"})
    for items in (*asked.stages.values(), *asked.healed):
        items[TRAIT] = items[TRAIT][:2]
    other = Arm("another trait", (asked,), 4)
    assert at_equal_measure(early, other, moved, SETTINGS).levels == ()
    assert best_lines([early, other], SETTINGS)[1].over_first is None

    along, value = np.array([[0, 1, 3, 2, 4.0]]), np.array([[0, 10, 30, 50, 70.0]])
    for level, expected in ((1, 10), (2, 20), (3, 30), (3.5, 65), (4, 70), (5, math.nan)):
        assert arrival(along, value, level)[0] == pytest.approx(expected, nan_ok=True), level


def test_arms_of_unequal_rounds_are_compared_at_their_best_ones() -> None:
    early, late = arms()
    table = {line.arm.name: line for line in best_lines([early, late], SETTINGS)}
    assert (table["early"].rounds, table["late"].rounds) == ((2, 2), (3, 3))  # the fourth is past a limit
    assert (table["late"].margin, table["late"].drift) == (0.1, 3.0)
    assert table["early"].over_first is table["early"].p is None
    over = table["late"].over_first
    assert over is not None
    assert (over.value, over.n) == (pytest.approx(0.1), len(PROMPTS))
    assert table["late"].p is not None
    assert lines([early, late], SETTINGS)[1].p[TRAIT] is None  # after their last rounds they are not
    assert dict(zip(best_header(), best_cells(table["late"]), strict=True))["best round of each seed"] == "3, 3"

    uneven = replace(late, runs=(*late.runs, run(2, [0.1] * 6, [1.0] * 6, [0.5] * 6, broken_from=0)), rounds=4)
    (_, third) = best_lines([early, uneven], SETTINGS)
    assert third.rounds == (3, 3, None)  # a seed of which no round holds
    assert third.over_first is not None


def test_drift_is_measured_in_the_one_way_that_all_runs_have() -> None:
    early, late = arms()
    older = [replace(each, drifts=[]) for each in early.runs]  # a record of an earlier version
    without = [replace(each, signals={TRAIT: "mean"}) for each in older]
    for runs, label, farthest in (
        ([*early.runs, *late.runs], "on answers", 5.0),
        ([*older, *late.runs], "on neutral text", 15.0),
        ([*without, *late.runs], None, None),
    ):
        measure = drift(runs)
        with case(label):
            assert (measure is None) == (label is None)
            if measure is not None:
                assert label in measure.label
                assert max(measure.of(each, index) for each in runs for index in range(each.rounds)) == farthest


def test_the_figure_has_every_round_of_every_run_and_one_arm_alone_has_no_matching() -> None:
    early, late = arms()
    for width in (WIDE, NARROW):
        canvas = fronts_figure(fronts([early, late], SETTINGS), width)
        says = [shape.says for shape in canvas.shapes if isinstance(shape, Mark)]
        for arm in (early, late):
            for each in arm.runs:
                for index in range(each.rounds):
                    start = f"{arm.name}, seed {each.keys['run.seed']}, round {index + 1}"
                    assert sum(said.startswith((f"{start}:", f"{start},")) for said in says) == 2, start
        assert sum("its best" in said for said in says) == 2 * 4
        assert any(said.startswith("late at ") for said in says)
        places = [shape.at for shape in canvas.shapes if isinstance(shape, Mark)]
        assert all(0 <= x <= width and 0 <= y <= canvas.height for x, y in places)
    alone = fronts([late], SETTINGS)
    assert alone.matchings == []
    assert fronts_figure(alone).height < fronts_figure(fronts([early, late], SETTINGS)).height
