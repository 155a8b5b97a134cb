"""The search for the dose: it hits, it says when it did not, and it never makes a coefficient up."""

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise, product

import pytest

from heal.dose.root import COLD, WARM, Search, Statistic, find_coefficient
from tests.cases import case

Curve = Callable[[float], float]
TARGET, TOLERANCE = 1.0, 0.05


def search(curve: Curve, start: float = 1.0, ratio: float = COLD, candidates: int = 4, max_passes: int = 6) -> Search:
    def statistic(coefficients: Sequence[float]) -> list[float]:
        assert len(set(coefficients)) == candidates
        return [curve(c) for c in coefficients]

    result = find_coefficient(statistic, TARGET, TOLERANCE, start, ratio, candidates, max_passes)
    assert result.passes <= max_passes
    assert len(result.evaluated) == candidates * result.passes
    assert (result.c, result.value) in result.evaluated
    assert all(value == curve(c) or math.isnan(value) for c, value in result.evaluated)
    return result


def at_each(curve: Curve) -> Statistic:
    """The statistic whose value at each coefficient is the curve's."""
    return lambda coefficients: [curve(c) for c in coefficients]


def quadratic(c_star: float) -> Curve:
    return lambda c: (c / c_star) ** 2


def saturating(c_star: float, ceiling: float = 6.0) -> Curve:
    """As c^2 near zero, then flat at `ceiling`; 1 at `c_star`."""
    rate = -math.log(1 - TARGET / ceiling)
    return lambda c: ceiling * -math.expm1(-rate * (c / c_star) ** 2)


SHAPES = (quadratic, saturating)


def noisy(curve: Curve, size: float, seed: int) -> Curve:
    """`curve` times a lognormal factor that depends on c alone."""
    return lambda c: curve(c) * math.exp(random.Random(f"{seed} {c}").gauss(0, size))


def test_an_analytic_curve_is_met_from_below_and_from_above_however_small_or_large_the_vector():
    for shape, c_star, candidates in product(SHAPES, (0.03, 0.3, 0.9, 1.0, 3.0, 30.0), (1, 2, 4, 7)):
        with case(shape.__name__, c_star, candidates):
            result = search(shape(c_star), candidates=candidates, max_passes=12 if candidates == 1 else 6)
            assert result.outcome == "tolerance"
            assert abs(result.value - TARGET) <= TOLERANCE
            assert result.c == pytest.approx(c_star, rel=0.06)

    for shape, start in product(SHAPES, (0.01, 1.0, 100.0)):
        with case(shape.__name__, start):
            result = search(shape(1.3), start)
            assert result.outcome == "tolerance"
            first = [c for c, _ in result.evaluated[:4]]
            assert first == pytest.approx([start * 2**power for power in (-1.5, -0.5, 0.5, 1.5)])

    for shape, c_star in product(SHAPES, (1e-4, 1e4, 1e6)):
        with case(shape.__name__, c_star):
            start = 1.0 if c_star > 1 or shape is quadratic else 1e-3  # in the flat part nothing says how far it is
            assert search(shape(c_star), start).outcome == "tolerance"


def test_a_warm_start_ends_within_two_passes_or_four_of_a_noisy_statistic_and_a_cold_one_within_four():
    # Noisy: it jumps by a tenth from one coefficient to the next, so that not every hit is before the crossing.
    for drift in (0.75, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35):
        with case(drift):
            assert search(saturating(5.0 * drift), start=5.0, ratio=WARM).passes <= 2
        for seed in range(5):
            with case(drift, seed):
                assert search(noisy(saturating(5.0 * drift), 0.1, seed), start=5.0, ratio=WARM).passes <= 4

    for c_star in (0.05, 0.3, 1.0, 4.0, 20.0):
        with case(c_star):
            assert search(saturating(c_star)).passes <= 4

    assert search(saturating(7.0), start=7.05, ratio=1.02).passes == 1


def test_a_shift_that_is_lost_in_rounding_until_it_is_large_is_found():
    result = search(lambda c: 0.0 if c < 3e4 else (c / 3e5) ** 2)
    assert result.outcome == "tolerance"


def distance(value: float) -> float:
    """From the target, in log."""
    return abs(math.log(value / TARGET))


def test_the_result_is_the_nearest_to_the_target_up_to_the_first_crossing():
    for seed in range(20):
        with case(seed):
            result = search(noisy(quadratic(random.Random(seed).uniform(0.1, 10)), 0.3, seed))
            above = [c for c, value in result.evaluated if value >= TARGET]
            distances = [distance(value) for c, value in result.evaluated if c <= min(above, default=math.inf)]
            assert distance(result.value) == min(distances)


def monotone(source: random.Random, falling: bool, floored: bool) -> Curve:
    """A curve that falls to 0, or rises from 0 or from a floor."""
    middle, power, ceiling = 10 ** source.uniform(-2, 2), source.uniform(0.3, 4), source.uniform(0.5, 20)
    floor = source.uniform(0, 1.5) if floored else 0.0

    def curve(c: float) -> float:
        share = c**power / (c**power + middle**power)
        return ceiling * (1 - share) if falling else floor + ceiling * share

    return curve


def test_on_a_monotone_curve_every_point_counts():
    """Rising or falling: the first pass with a hit is the last, and the nearest of all points is the result."""
    for seed in range(60):
        with case(seed):
            source, falling = random.Random(seed), seed % 3 == 1
            curve = monotone(source, falling, floored=seed % 3 == 2)
            candidates, zero = source.randint(1, 5), None if seed % 3 == 0 else curve(0.0)
            result = find_coefficient(
                at_each(curve),
                TARGET,
                TOLERANCE,
                candidates=candidates,
                zero=zero,
                falling=falling,
            )
            hits = [abs(value - TARGET) <= TOLERANCE for _, value in result.evaluated]
            assert (result.outcome == "tolerance") == any(hits)
            assert not any(hits[: 0 if result.passes == 0 else -candidates])
            assert distance(result.value) == min(distance(value) for _, value in result.evaluated)


def hump(c: float) -> float:
    """Rises past the target at 0.5, and falls back to it at 2.83, as the KL of a model that loops does."""
    return (c / 0.5) ** 2 if c < 1 else 4 * c**-1.3333


def test_a_point_on_the_falling_side_of_a_hump_is_no_hit():
    result = search(hump)
    assert abs(hump(result.evaluated[3][0]) - TARGET) <= TOLERANCE
    assert result.outcome == "tolerance"
    assert result.c == pytest.approx(0.5, rel=0.05)


def test_a_jump_over_the_target_ends_in_its_own_narrow_bracket():
    levels = ((0.2, 4.0), (0.9, 1.2), (0.01, 1.1), (0.0, 2.0), (0.5, math.inf))
    for edge, (lower, upper) in product((0.7, 2.2, 5.3, 7.9), levels):
        with case(edge, lower, upper):
            result = search(lambda c, e=edge, lower=lower, upper=upper: lower if c < e else upper, max_passes=12)
            assert result.outcome == "bracket"
            below = max(c for c, value in result.evaluated if value < TARGET)
            above = min(c for c, value in result.evaluated if not value < TARGET)
            assert below < edge <= above <= 1.01 * below

    result = search(lambda c: 0.4 * c if c < 0.5 else max(4.0 / c, 1.1), max_passes=12)
    assert result.outcome == "bracket"
    assert result.c == pytest.approx(0.5, rel=0.01)

    for edge in (0.7, 1.4, 5.3):
        with case(edge):
            assert search(lambda c, edge=edge: 0.94 if c < edge else 300.0, max_passes=6).outcome == "bracket"

    assert search(lambda c: 0.2 if c < 1.4 else 4.0).outcome == "bracket"


def test_a_curve_that_stays_below_the_target_is_unreachable_and_one_that_stays_above_it_no_hit():
    for ceiling in (0.0, 1e-12, 0.5, 0.94):
        with case(ceiling):
            assert search(lambda c, ceiling=ceiling: ceiling * -math.expm1(-c * c)).outcome == "unreachable"

    assert search(lambda c: 2.0).outcome == "passes"


def test_a_value_that_is_not_finite_counts_as_above_the_target_and_is_not_the_result_beside_a_finite_one():
    for broken, (c_star, edge, start) in product(
        (math.inf, math.nan), ((0.1, 0.15, 1.0), (0.1, 0.15, 20.0), (10, 11, 1.0))
    ):
        with case(broken, c_star, edge, start):
            result = search(lambda c, s=c_star, e=edge, broken=broken: (c / s) ** 2 if c < e else broken, start)
            assert result.outcome == "tolerance"
            assert result.c == pytest.approx(c_star, rel=0.05)

    for broken in (math.inf, math.nan):
        with case(broken):
            result = search(lambda c, broken=broken: 0.3 if c < 5.3 else broken)
            assert result.value == 0.3
            assert result.outcome != "tolerance"


def test_passes_are_limited():
    curves = {
        "above the start": quadratic(9.0),
        "below it": saturating(0.01),
        "a jump": lambda c: 0.2 if c < 3 else 4.0,
        "broken": lambda c: math.nan,
    }
    for (name, curve), limit in product(curves.items(), (1, 2, 3, 5, 8)):
        with case(name, limit):
            search(curve, max_passes=limit)


def test_tolerance_is_claimed_exactly_when_it_was_met_on_a_noisy_curve_too():
    for seed in range(30):
        with case(seed):
            source = random.Random(seed)
            curve = saturating(10 ** source.uniform(-2, 2), source.uniform(1.02, 10))
            limit = source.randint(2, 12)
            result = search(curve, 10 ** source.uniform(-1, 1), max_passes=limit)
            assert (result.outcome == "tolerance") == any(
                abs(value - TARGET) <= TOLERANCE for _, value in result.evaluated
            )
            if result.outcome == "passes":
                assert result.passes == limit

    for seed in range(20):
        with case(seed):
            result = search(noisy(saturating(5.0), 0.1, seed))
            assert (result.outcome == "tolerance") == (abs(result.value - TARGET) <= TOLERANCE)
            assert result.c == pytest.approx(5.0, rel=0.5)


def test_the_same_curve_is_searched_in_the_same_way():
    for seed in range(10):
        with case(seed):
            curve = noisy(saturating(3.0), 0.2, seed)
            assert search(curve) == search(curve)


def test_a_target_or_start_that_is_not_positive_is_a_programming_error():
    for target, start in [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, -2.0), (math.nan, 1.0)]:
        with case(target, start), pytest.raises(ValueError, match="must be positive"):
            find_coefficient(lambda cs: list(cs), target, TOLERANCE, start)


# A largest coefficient


def test_no_coefficient_beyond_the_largest_is_tried_and_a_target_below_it_is_met():
    for candidates, start, largest in product((1, 2, 4, 7), (0.01, 1.0), (1.0, math.pi)):
        with case(candidates, start, largest):
            tried: list[float] = []

            def statistic(coefficients: Sequence[float], tried=tried, candidates=candidates) -> list[float]:
                assert len(set(coefficients)) == candidates
                tried.extend(coefficients)
                return [0.01 * c * c for c in coefficients]

            result = find_coefficient(
                statistic, TARGET, TOLERANCE, start, candidates=candidates, max_passes=20, largest=largest
            )
            assert result.outcome == "unreachable"
            assert max(tried) <= largest
            assert (result.c, result.value) == (pytest.approx(largest), pytest.approx(0.01 * largest**2))

    for c_star, start in product((0.02, 0.5, 0.97), (0.01, 0.5, 1.0)):
        with case(c_star, start):
            result = find_coefficient(
                at_each(quadratic(c_star)),
                TARGET,
                TOLERANCE,
                start,
                max_passes=8,
                largest=1.0,
            )
            assert result.outcome == "tolerance"
            assert result.c == pytest.approx(c_star, rel=0.06)

    free, bound = (
        find_coefficient(at_each(saturating(3.0)), TARGET, TOLERANCE, largest=largest) for largest in (None, 1e9)
    )
    assert free == bound


# A statistic that does not vanish at 0


def test_a_floor_under_the_target_changes_nothing_and_zero_itself_is_a_hit_where_it_is_on_target():
    statistic = at_each(lambda c: 0.3 + (c / 2) ** 2)
    plain, floored = (find_coefficient(statistic, TARGET, TOLERANCE, zero=zero) for zero in (None, 0.3))
    assert floored.outcome == "tolerance"
    assert floored.evaluated == ((0.0, 0.3), *plain.evaluated)
    assert (floored.c, floored.value, floored.passes) == (plain.c, plain.value, plain.passes)

    def statistic(coefficients: Sequence[float]) -> list[float]:
        raise AssertionError("nothing more is measured")

    result = find_coefficient(statistic, TARGET, TOLERANCE, zero=1.02)
    assert (result.c, result.value, result.outcome, result.passes) == (0.0, 1.02, "tolerance", 0)


def test_a_statistic_that_never_falls_to_the_target_is_unreachable_and_the_least_is_the_result_even_at_zero():
    for floor in (1.2, 50.0, math.inf, math.nan):
        with case(floor):
            result = find_coefficient(lambda cs: [1.2 + c for c in cs], TARGET, TOLERANCE, zero=floor)
            assert result.outcome == "unreachable"
            assert result.value == min(value for _, value in result.evaluated if not math.isnan(value))
            assert result.value > TARGET

    result = find_coefficient(lambda cs: [2 + c for c in cs], TARGET, TOLERANCE, zero=2.0)
    assert (result.c, result.value, result.outcome) == (0.0, 2.0, "unreachable")


def test_beyond_a_dip_the_coefficient_at_which_the_statistic_rises_again_is_taken():
    """As an ablation does whose activations all have the component `dip`."""
    for dip in (0.5, 3.0, 40.0):
        with case(dip):
            result = find_coefficient(
                at_each(lambda c, dip=dip: 4 * (c / dip - 1) ** 2), TARGET, TOLERANCE, max_passes=10, zero=4.0
            )
            assert result.outcome == "tolerance"
            assert result.c == pytest.approx(1.5 * dip, rel=0.05)


# A statistic that falls


def search_of_falling(curve: Curve) -> Search:
    """The search on a curve that falls from 4 at 0, up to a largest coefficient of pi, as for an angle."""
    return find_coefficient(at_each(curve), TARGET, TOLERANCE, max_passes=8, largest=math.pi, zero=4.0, falling=True)


def test_where_the_statistic_falls_the_first_crossing_from_above_is_taken():
    # As of an angle: far at 0, least at the angle that activations have anyway, and far again beyond it.
    for c_star in (0.2, 1.0, 2.5):
        with case(c_star):
            result = search_of_falling(lambda c, c_star=c_star: 4 * (c / (2 * c_star) - 1) ** 2)
            assert result.outcome == "tolerance"
            assert result.c == pytest.approx(c_star, rel=0.06)

    result = find_coefficient(at_each(hump_upside_down), TARGET, TOLERANCE, max_passes=8, zero=4.0, falling=True)
    assert result.outcome == "tolerance"
    assert result.c == pytest.approx(0.5, rel=0.06)


def hump_upside_down(c: float) -> float:
    """Falls past the target at 0.5, and rises back to it at 2.83."""
    return 4 * 0.0625**c if c < 1 else 0.25 * c**1.3333


def test_a_falling_statistic_is_unreachable_at_once_under_the_target_and_at_the_largest_coefficient_above_it():
    result = find_coefficient(lambda cs: [0.0 for _ in cs], TARGET, TOLERANCE, zero=0.5, falling=True)
    assert (result.c, result.value, result.outcome, result.passes) == (0.0, 0.5, "unreachable", 0)

    result = find_coefficient(
        lambda cs: [9 - c for c in cs], TARGET, TOLERANCE, largest=math.pi, zero=9.0, falling=True
    )
    assert result.outcome == "unreachable"
    assert result.c == pytest.approx(math.pi)


def test_a_dip_or_hump_that_the_first_points_step_over_is_found_up_to_the_largest_coefficient():
    """A curve above the target but for a dip, or below it but for a hump, 0.08 wide or more, anywhere in 0 to 1."""
    for middle, width, upside in product((0.15, 0.4, 0.66, 0.9), (0.08, 0.12), (True, False)):
        with case(middle, width, upside):
            sign = 1 if upside else -1

            def curve(c: float, middle=middle, width=width, sign=sign) -> float:
                return TARGET + sign * (0.3 - 0.6 * math.exp(-(((c - middle) / (width / 2)) ** 2)))

            result = find_coefficient(
                at_each(curve), TARGET, TOLERANCE, largest=1.0, zero=curve(0.0) if upside else None, max_passes=8
            )
            assert result.outcome == "tolerance"
            assert result.passes <= 8


def test_what_is_called_unreachable_was_looked_for_everywhere():
    """No gap between evaluated coefficients is left wider than a tenth of the range, with the default passes."""
    result = find_coefficient(at_each(lambda c: 3.0 + c), TARGET, TOLERANCE, largest=1.0, zero=3.0)
    tried = sorted(c for c, _ in result.evaluated)
    assert result.outcome == "unreachable"
    assert max(b - a for a, b in pairwise(tried)) <= 0.1
    assert result.c == 0.0


def test_a_search_that_knows_the_noise_ends_sooner_and_no_farther_from_the_true_dose():
    passes, misses = {}, {}
    for known in (True, False):
        found = []
        for seed, (start, ratio) in product(range(60), ((1.0, COLD), (0.85, WARM), (1.2, WARM))):
            curve = noisy(saturating(1.0), 0.12, seed)
            error = (lambda c, curve=curve: 0.12 * curve(c)) if known else (lambda c: 0.0)
            found.append(find_coefficient(at_each(curve), TARGET, TOLERANCE, start, ratio, error=error))
            assert found[-1].outcome != "noise" or abs(found[-1].value - TARGET) <= 0.15
        passes[known] = sum(result.passes for result in found)
        misses[known] = math.sqrt(sum((saturating(1.0)(result.c) - TARGET) ** 2 for result in found) / len(found))
    assert passes[True] < 0.85 * passes[False]
    assert misses[True] < 1.1 * misses[False]
