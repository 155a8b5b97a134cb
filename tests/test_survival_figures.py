"""Figures of rollouts: a panel an alpha, whatever the rollouts came to."""

import math
import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from heal.report import drawing
from heal.studies.survival import figures
from heal.studies.survival.curves import survival
from heal.studies.survival.figures import ALIVE_COLOUR, DEAD_COLOUR, apart, beginning, draw
from heal.studies.survival.rollouts import Trajectory, by_alpha
from tests.cases import case
from tests.survived import trajectory

ALPHAS = (0.0, 0.5, 1.0, 4.0)


def wave(length: int, height: float = 0.1) -> tuple[float, ...]:
    return tuple(height * (1.1 + math.sin(token)) for token in range(length))


def few() -> list[Trajectory]:
    """Alive, dead, ended, at several alphas, with exact zeros at alpha 0."""
    found = []
    for alpha in ALPHAS:
        found += [
            trajectory(alpha, 0, kl=wave(12, alpha)),
            trajectory(alpha, 1, kl=wave(9, alpha), ended=True),
            trajectory(alpha, 2, kl=wave(12, alpha), death=8 if alpha > 1 else None),
        ]
    return found


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pixels, which are quicker to draw."""
    monkeypatch.setattr(drawing, "DPI", 50)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures behind the bytes, in the order in which they were made."""
    found: list[Figure] = []
    png = figures.png

    def keep(figure: Figure) -> bytes:
        found.append(figure)
        return png(figure)

    monkeypatch.setattr(figures, "png", keep)
    return found


def size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def shown(figure: Figure) -> list:
    return [axis for axis in figure.axes if axis.axison]


def lines_of(axis, colour: str) -> list:
    return [line for line in axis.lines if line.get_color() == colour and line.get_linestyle() == "-"]


def points(lines: Sequence) -> int:
    """How many places a set of lines goes through."""
    return sum(len(line.get_xdata()) for line in lines)


def test_there_is_a_panel_an_alpha_and_one_for_survival(drawn: list[Figure]):
    found = draw(few(), 1.0)
    assert list(found) == ["kl", "kl_normalised", "survival"]
    assert all(min(size(image)) > 100 for image in found.values())
    assert [len(shown(figure)) for figure in drawn] == [len(ALPHAS), len(ALPHAS), 1]


def test_the_panel_of_alpha_0_says_that_it_is_exactly_0_and_only_that_one(drawn: list[Figure]):
    figures.divergence(few())
    titles = [axis.get_title(loc="left") for axis in shown(drawn[0])]
    assert ["exactly 0" in title for title in titles] == [True, False, False, False]


def test_a_reference_that_alpha_0_differs_from_is_not_called_0(drawn: list[Figure]):
    figures.divergence([trajectory(0.0, kl=wave(12)), trajectory(1.0, kl=wave(12))])
    assert not any("exactly 0" in axis.get_title(loc="left") for axis in shown(drawn[0]))


def test_what_comes_after_a_death_has_the_colour_of_the_dead(drawn: list[Figure]):
    figures.divergence([trajectory(kl=wave(12), death=8), trajectory(kl=wave(12))])
    (axis,) = shown(drawn[0])
    dead = [line for line in lines_of(axis, DEAD_COLOUR) if len(line.get_xdata())]
    assert [line.get_xdata().tolist() for line in dead if len(line.get_xdata()) > 1] == [[8, 9, 10, 11, 12]]
    assert points(lines_of(axis, ALIVE_COLOUR)) == 8 + 12


def test_an_exact_zero_is_drawn_at_0(drawn: list[Figure]):
    figures.divergence([trajectory(kl=(0.0, 1.0, 0.0))])
    (axis,) = shown(drawn[0])
    assert axis.get_ylim()[0] < 0 < axis.get_ylim()[1]
    assert lines_of(axis, ALIVE_COLOUR)[0].get_ydata().tolist() == [0, 1, 0]
    assert np.isfinite(axis.transData.transform((1, 0.0))).all()


def test_a_normalised_rollout_is_over_the_p95_of_its_first_tokens(drawn: list[Figure]):
    one = trajectory(kl=(*wave(20, 2.0), 50.0))
    figures.normalised_divergence([one])
    assert beginning(one) == pytest.approx(np.quantile(one.kl[:20], 0.95))
    (axis,) = shown(drawn[0])
    assert lines_of(axis, ALIVE_COLOUR)[0].get_ydata() == pytest.approx(np.array(one.kl) / beginning(one))


def test_a_rollout_that_cannot_be_normalised_is_left_out_and_counted(drawn: list[Figure]):
    for kl in [(0.0,) * 12, (), (0.1, math.nan, 0.1)]:
        with case(kl):
            figures.normalised_divergence([trajectory(kl=kl), trajectory(kl=wave(12)), trajectory(kl=wave(12))])
            (axis,) = shown(drawn[0])
            assert "1 of 3 left out" in axis.get_title(loc="left")
            assert points(lines_of(axis, ALIVE_COLOUR)) == 24


def test_figures_are_drawn_whatever_the_rollouts_came_to():
    for given in [
        [trajectory()],
        [trajectory(length=1, ended=True)],
        [trajectory(length=0, death=0)],
        [trajectory(alpha, kl=wave(12), death=4) for alpha in (1.0, 4.0) for _ in range(2)],
        [trajectory(alpha, kl=wave(6), ended=True) for alpha in (1.0, 4.0) for _ in range(2)],
        [trajectory(kl=(math.nan, math.inf, 1.0), death=0), trajectory(2.0, kl=(0.0, 0.0))],
        [trajectory(index / 4, kl=wave(12, index)) for index in range(8)],
    ]:
        with case(given):
            for image in draw(given, 1.0).values():
                assert min(size(image)) > 100


def test_every_curve_has_its_half_life_beside_it(drawn: list[Figure]):
    figures.survival_curves({alpha: survival(group) for alpha, group in by_alpha(few()).items()})
    (axis,) = shown(drawn[0])
    texts = {text.get_text() for text in axis.texts}
    assert texts == {f"α {alpha:g}, half-life not reached" for alpha in ALPHAS}
    figures.survival_curves({1.0: survival([trajectory(death=4)])})
    assert [text.get_text() for text in shown(drawn[1])[0].texts] == ["α 1, half-life 4"]


def test_labels_are_moved_apart_in_order_and_stay_inside():
    for heights in [(1.0,) * 8, (1.0, 0.99, 0.5, 0.02, 0.0, 0.0), (0.0,) * 8, (1.0,), ()]:
        with case(heights):
            places = apart(heights, 0.05, -0.04)
            assert all(above - below >= 0.05 - 1e-9 for above, below in pairwise(places))
            assert all(-0.04 - 1e-9 <= place <= 1.0 for place in places)
