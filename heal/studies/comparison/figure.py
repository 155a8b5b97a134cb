"""The figure of a comparison: the arms' trajectories, trait against coherence, and both round by round."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from heal.evaluation.signal import TRAIT, Signal, signals
from heal.evaluation.stats import Estimate
from heal.report.drawing import COLOURS, DASHES, DOTS, INK, MARKERS, MUTED, legend, log_axis, new_figure, png
from heal.studies.comparison.arms import Arm, Settings, drawn
from heal.studies.comparison.runs import BASE

_STAGE_MARKS = {"base": "s", "prompted": "D"}
_FILLS, _CROSSES = ("full", "none", "left", "bottom"), ("x", "+", "1", "2")
_MISSING = Estimate(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Look:
    """Of a trained arm in every panel."""

    colour: str
    marker: str


def figure(arms: Sequence[Arm], settings: Settings) -> bytes:
    """The trait against coherence, one line an arm; then the trait and coherence by round, with a band over seeds.

    Coherence is drawn as the signals whose descriptions put them into trajectories, if any arm has them. Base, prompted
    and raw steering are marks of their own, one kind for each trait, model or measure among them.
    """
    against = [signal for signal in drawn() if any(signal.name in arm.signals for arm in arms)]
    heights = [*[1.3] * len(against), 1.0, *[1.0] * len(against)]
    image, axes = new_figure(len(heights), 1, 0.6 + 2.65 * sum(heights), heights=heights)
    paths, trait, courses = axes[: len(against)], axes[len(against)], axes[len(against) + 1 :]
    trained, others = ([arm for arm in arms if (arm.stage is None) == is_trained] for is_trained in (True, False))
    looks = [Look(colour, marker) for _, colour, marker in zip(trained, cycle(COLOURS), cycle(MARKERS), strict=False)]
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, markersize=6, label=arm.name)
        for arm, look in zip(trained, looks, strict=True)
    ]
    for arm, look in zip(trained, looks, strict=True):
        _course(trait, _series(arm, TRAIT, settings), look)
    for place, (signal, path, course) in enumerate(zip(against, paths, courses, strict=True)):
        for arm, look in zip(trained, looks, strict=True):
            series = _series(arm, signal.name, settings)
            _way(path, _series(arm, TRAIT, settings), series, look)
            _course(course, series, look)
        marks = _untrained(path, others, signal.name, settings)
        handles += marks if place == 0 else []
        _name_axes([path, course], signal)
        path.set_xlabel(f"{signals()[TRAIT].note} (the large mark is the last round)")
    for base in {round(_series(arm, TRAIT, settings)[0].value, 9) for arm in trained}:
        trait.axhline(base, color=MUTED, linestyle=DASHES, linewidth=1)
    trait.set_ylabel(signals()[TRAIT].note)
    axes[-1].set_xlabel("round")
    legend(image, handles, 3)
    return png(image)


def _name_axes(axes: Sequence[Axes], signal: Signal) -> None:
    """Names the y-axes of a signal; logarithmic where its distances are ratios, upside down where lower is better."""
    log, inverted = signal.limit is not None and signal.limit.log, signal.better == "lower"
    notes = [text for text, holds in (("log", log), ("inverted", inverted)) if holds]
    for axis in axes:
        if log and axis.get_ylim()[0] > 0:
            log_axis(axis, "y")
        if inverted:
            axis.invert_yaxis()
        axis.set_ylabel(signal.term + (f" ({', '.join(notes)})" if notes else ""))


def _series(arm: Arm, name: str, settings: Settings) -> list[Estimate]:
    """A signal at base and after each round; NaN where a run lacks it."""
    return [arm.estimate(name, where, settings) or _MISSING for where in [BASE, *range(arm.rounds)]]


def _way(path: Axes, trait: Sequence[Estimate], signal: Sequence[Estimate], look: Look) -> None:
    """An arm's way from base on, its last round larger."""
    x, y = [estimate.value for estimate in trait], [estimate.value for estimate in signal]
    path.plot(x, y, color=look.colour, linewidth=1.5, marker=look.marker, markersize=4)
    path.plot(x[-1], y[-1], marker=look.marker, markersize=9, color=look.colour, linestyle="none")


def _course(axis: Axes, series: Sequence[Estimate], look: Look) -> None:
    """A signal by round, with a band."""
    rounds = np.arange(len(series))
    low, high = [estimate.low for estimate in series], [estimate.high for estimate in series]
    axis.fill_between(rounds, low, high, color=look.colour, alpha=0.12, linewidth=0)
    values = [estimate.value for estimate in series]
    axis.plot(rounds, values, color=look.colour, linewidth=1.5, marker=look.marker, markersize=4)
    axis.set_xticks(rounds)


def _untrained(path: Axes, arms: Sequence[Arm], name: str, settings: Settings) -> list[Line2D]:
    """Draws base, prompted and raw steering; their handles for the legend."""
    handles = []
    fills: dict[str, Any] = dict(zip(dict.fromkeys(_of(arm) for arm in arms), cycle(_FILLS), strict=False))
    crosses = dict(zip(fills, cycle(_CROSSES), strict=False))
    steered: dict[str, list[tuple[float, float]]] = {}
    for arm in arms:
        trait, signal = (arm.estimate(measured, arm.last, settings) for measured in (TRAIT, name))
        if trait is None or signal is None:
            continue
        place = trait.value, signal.value
        if arm.stage in _STAGE_MARKS:
            look: dict[str, Any] = {"marker": _STAGE_MARKS[arm.stage], "color": INK, "linestyle": "none"}
            look |= {"fillstyle": fills[_of(arm)], "markerfacecoloralt": "white"}
            path.plot(*place, markersize=9, zorder=4, **look)
            handles.append(Line2D([], [], markersize=6, label=arm.name, **look))
        elif arm.stage is not None:
            steered.setdefault(_of(arm), []).append(place)
            path.annotate(arm.stage.split()[-2], place, (5, 4), textcoords="offset points", fontsize=8, color=MUTED)
    for of, places in steered.items():
        look = {"marker": crosses[of], "color": MUTED, "linestyle": DOTS, "linewidth": 1}
        path.plot(*zip(*places, strict=True), markersize=6, **look)
        handles.append(Line2D([], [], label=f"raw steering, multiples of c*{of}", **look))
    return handles


def _of(arm: Arm) -> str:
    """What an untrained arm's name says after its stage: what it differs in from others of that stage."""
    return arm.name.removeprefix(arm.stage or "")
