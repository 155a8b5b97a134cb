"""A check as a few lines on the console and as a figure."""

from collections.abc import Sequence
from itertools import cycle

from matplotlib.axes import Axes

from heal.evaluation.stats import Estimate
from heal.places.place import Steered, table
from heal.report.drawing import COLOURS, DASHES, MARKERS, MUTED, legend, mark, new_figure, png
from heal.report.plot import arms, drawable
from heal.studies.check.cost import Cost
from heal.studies.check.measure import Check
from heal.studies.check.read import Separation
from heal.studies.interventions.show import folded

FIGURE = "check.png"


def lines(check: Check) -> list[str]:
    """The tables: what can be read, what can be steered, whether answers end, what a run costs."""
    ends, notices = check.endings, len(check.notices)
    longest = f"{ends.p90} tokens" if ends.p90 else f"more than {ends.looked} tokens"
    return [
        *(f"read       {_separation(one)}" for one in check.separations),
        f"steer      at p95 KL {check.target:g} nats; the recipe's place first",
        *(f"           {line}" for line in table(check.steered)),
        f"answers    {ends.within:.0%} of {ends.n} end within {ends.budget} tokens; nine of ten within {longest}",
        f"chat       its contract holds; {notices or 'no'} {'notice' if notices == 1 else 'notices'}",
        *(f"           {notice}" for notice in check.notices),
        *_cost(check.cost),
    ]


def figure(check: Check) -> bytes:
    """PNG: the readouts of the trait under either persona, and the shift of the trait per nat by depth.

    Hollow marks: answers past a limit of coherence.
    """
    drawn, (read, steer) = new_figure(1, 2, 3.2)
    _draw_separations(read, check.separations)
    methods = list(dict.fromkeys(one.place.method for one in check.steered))
    handles = []
    for method, colour, marker in zip(methods, cycle(COLOURS), cycle(MARKERS), strict=False):
        of_method = sorted(
            (one for one in check.steered if one.place.method == method), key=lambda one: sum(one.place.band)
        )
        _draw_method(steer, of_method, colour, marker)
        handles.append(mark(marker, colour, method))
    own = check.steered[0].place.band
    steer.axvline(sum(own) / 2, color=MUTED, linestyle=DASHES, linewidth=1)
    steer.axhline(0, color=MUTED, linewidth=1)
    steer.set_xlim(0, 1)
    steer.set_xlabel("depth of the band's centre\n(dashed: the recipe's)")
    steer.set_ylabel("trait over base per nat, 1/token")
    legend(drawn, handles, min(3, len(handles)))
    return png(drawn)


def _draw_separations(axis: Axes, separations: Sequence[Separation]) -> None:
    """Positive over negative persona, and over base, with their intervals; a line a readout."""
    places = list(range(len(separations)))[::-1]
    for place, one in zip(places, separations, strict=True):
        for estimate, offset, colour in ((one.apart, 0.12, COLOURS[0]), (one.over_base, -0.12, MUTED)):
            _interval(axis, estimate, place + offset, colour)
    axis.axvline(0, color=MUTED, linestyle=DASHES, linewidth=1)
    axis.set_yticks(places, [f"{folded(one.signal)}\n({one.unit})" for one in separations], fontsize=8)
    axis.set_ylim(-0.6, len(separations) - 0.4)
    axis.set_xlabel("positive persona over\nthe negative (blue), over base (grey)")


def _interval(axis: Axes, estimate: Estimate, place: float, colour: str) -> None:
    if drawable(estimate):
        below, above = arms(estimate)
        axis.errorbar([estimate.value], [place], xerr=[[below], [above]], fmt="o", color=colour, markersize=5)


def _draw_method(axis: Axes, of_method: Sequence[Steered], colour: str, marker: str) -> None:
    """A method's shift per nat over the depth."""
    shown = [one for one in of_method if drawable(one.per_nat)]
    depths = [sum(one.place.band) / 2 for one in shown]
    axis.plot(depths, [one.per_nat.value for one in shown], color=colour, linewidth=1.2)
    for depth, one in zip(depths, shown, strict=True):
        below, above = arms(one.per_nat)
        axis.errorbar(
            [depth],
            [one.per_nat.value],
            yerr=[[below], [above]],
            fmt=marker,
            color=colour,
            markersize=6,
            markerfacecolor="white" if one.incoherent else colour,
        )


def _separation(one: Separation) -> str:
    return (
        f"{one.signal}: base {one.base:.3f}, under the persona {one.positive:.3f}, under the opposite one "
        f"{one.negative:.3f}; apart {one.apart:+.3f} (n = {one.apart.n}), over base {one.over_base:+.3f} {one.unit}: "
        f"{'readable' if one.readable else 'not readable'}"
    )


def _cost(cost: Cost) -> list[str]:
    steps = ", ".join(f"{name} {seconds:.0f}" for name, seconds in cost.seconds.items() if seconds)
    return [
        f"cost       {_minutes(cost.round)} a round ({steps} s), {_minutes(cost.run)} for {cost.rounds} rounds with "
        f"the baseline; {cost.pieces.tokens_per_second:.0f} tokens/s decoded by {cost.pieces.rows} rows",
        f"memory     {cost.memory.line('the device')}",
    ]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
