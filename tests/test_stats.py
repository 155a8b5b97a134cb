"""Bootstrap intervals: they cover, they pair, they repeat."""

import math
from typing import get_args

import numpy as np
import pytest

from heal.evaluation.stats import (
    Estimate,
    Statistic,
    estimate,
    holm,
    informedness,
    over_seeds,
    paired_difference,
    point,
    sign_flip_p,
)

NAN = float("nan")
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
REDUCE = {"mean": np.mean, "median": np.median, "log_mean": lambda values: np.log(np.mean(values))}


def drawn(n: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, scale, n)


def items_for(statistic: Statistic, n: int, seed: int) -> np.ndarray:
    """Items of either sign, but positive where their mean's logarithm is asked for."""
    return np.exp(drawn(n, seed)) if statistic == "log_mean" else drawn(n, seed)


def test_an_interval_covers_the_truth_as_often_as_its_level_says():
    for level, least, most in ((0.5, 0.44, 0.56), (0.8, 0.74, 0.86), (0.95, 0.90, 0.985), (0.99, 0.93, 1.0)):
        found = [estimate(drawn(40, seed), "mean", 500, seed, level) for seed in range(300)]
        assert least <= np.mean([each.low <= 0.3 <= each.high for each in found]) <= most, level
    covered = 0
    for seed in range(300):
        base = drawn(40, seed, 3.0)
        found = paired_difference(base + drawn(40, seed + 1000), base, "mean", 500, seed)
        covered += found.low <= 0.3 <= found.high
    assert 0.90 <= covered / 300 <= 0.985


def test_more_items_and_pairing_narrow_the_interval():
    narrow, wide = estimate(drawn(1600, 1), "mean", 500, 0), estimate(drawn(100, 1), "mean", 500, 0)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(4.0, rel=0.3)

    base = drawn(40, 0, 3.0)
    after = base + drawn(40, 1, 0.1)
    paired = paired_difference(after, base, "mean", 1000, 0)
    alone, other = estimate(after, "mean", 1000, 0), estimate(base, "mean", 1000, 0)
    unpaired = math.hypot(alone.high - alone.low, other.high - other.low)
    assert paired.high - paired.low < unpaired / 10
    assert paired.excludes_zero
    assert alone.low < other.high


def test_the_value_is_the_statistic_of_the_items_and_the_interval_lies_within_them():
    for statistic in STATISTICS:
        values, base = items_for(statistic, 41, 0), items_for(statistic, 41, 1)
        assert estimate(values, statistic, 200, 0).value == pytest.approx(REDUCE[statistic](values))
        assert point([*values, NAN], statistic) == pytest.approx(REDUCE[statistic](values))
        found = paired_difference(values, base, statistic, 200, 0).value
        assert found == pytest.approx(REDUCE[statistic](values) - REDUCE[statistic](base)), statistic

    for statistic in STATISTICS:
        for seed in range(10):
            values = items_for(statistic, 9, seed)
            found = estimate(values, statistic, 300, seed)
            lowest, highest = (REDUCE[statistic]([bound]) for bound in (values.min(), values.max()))
            assert lowest <= found.low <= found.high <= highest, (statistic, seed)

    values = [*drawn(40, 0), 1e6]
    assert estimate(values, "median", 300, 0).high < 2
    assert estimate(values, "mean", 300, 0).value > 1e4


def test_what_is_not_a_number_is_left_out_and_n_says_so():
    values, base = [1.0, NAN, 3.0, 4.0, 9.0], [0.0, 5.0, NAN, 3.0, 8.0]
    found = paired_difference(values, base, "mean", 200, 0)
    assert found.n == 3
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))

    assert estimate([NAN, 2.0, NAN, 2.0], "mean", 200, 0) == Estimate(2.0, 2.0, 2.0, 2)

    for statistic in STATISTICS:
        for values in ([], [NAN], [NAN, NAN]):
            assert math.isnan(point(values, statistic))
            for found in (estimate(values, statistic, 200, 0), paired_difference(values, values, statistic, 200, 0)):
                assert found.n == 0
                assert all(math.isnan(number) for number in (found.value, found.low, found.high))
                assert not found.excludes_zero


def test_constant_items_one_item_and_what_is_compared_with_itself_have_an_interval_of_no_width():
    for statistic in STATISTICS:
        logarithm = statistic == "log_mean"
        for found, value in (
            (estimate([0.7] * 12, statistic, 200, 0), math.log(0.7) if logarithm else 0.7),
            (
                paired_difference([0.7] * 12, [0.5] * 12, statistic, 200, 0),
                math.log(0.7 / 0.5) if logarithm else 0.2,
            ),
        ):
            assert (found.value, found.low, found.high) == pytest.approx((value, value, value)), statistic
            assert found.high - found.low < 1e-12

    assert estimate([0.7], "mean", 200, 0) == Estimate(0.7, 0.7, 0.7, 1)

    for statistic in STATISTICS:
        values = items_for(statistic, 20, 0)
        assert paired_difference(values, values, statistic, 200, 0) == Estimate(0.0, 0.0, 0.0, 20)


def test_the_logarithm_is_taken_of_a_seed_s_mean_over_the_items_that_have_a_number():
    assert estimate([0.1, NAN, 0.3], "log_mean", 200, 0).value == pytest.approx(math.log(0.2))
    two = over_seeds([[0.1, 0.3], [0.7, 0.9]], None, "log_mean", 200, 0)
    assert two.value == pytest.approx((math.log(0.2) + math.log(0.8)) / 2)


def test_the_same_seed_gives_the_same_interval_and_a_difference_turned_round_the_mirrored_one():
    values = drawn(20, 0)
    assert estimate(values, "mean", 200, 5) == estimate(values, "mean", 200, 5)
    assert estimate(values, "mean", 200, 5) != estimate(values, "mean", 200, 6)

    values, base = drawn(20, 0), drawn(20, 1)
    there, back = paired_difference(values, base, "mean", 300, 0), paired_difference(base, values, "mean", 300, 0)
    assert (-back.value, -back.high, -back.low) == pytest.approx((there.value, there.low, there.high))


def test_sides_or_tables_of_different_shapes_are_an_error():
    for one, other in ((3, 4), (4, 3), (0, 1)):
        with pytest.raises(ValueError, match=f"{one} items against {other}"):
            paired_difference([1.0] * one, [1.0] * other, "mean", 200, 0)

    with pytest.raises(ValueError, match="not tables of one shape"):
        over_seeds([[1.0, 2.0]], [[1.0]], "mean", 10, 0)


def test_an_interval_excludes_zero_only_from_one_side():
    for low, high, excludes in (
        (0.1, 0.2, True),
        (-0.2, -0.1, True),
        (-0.1, 0.2, False),
        (0.0, 0.2, False),
        (-0.2, 0.0, False),
        (NAN, NAN, False),
    ):
        assert Estimate((low + high) / 2, low, high, 5).excludes_zero is excludes, (low, high)


# Over seeds.


def test_with_one_seed_it_is_the_estimate_over_items():
    for statistic in STATISTICS:
        values, base = items_for(statistic, 40, 1), items_for(statistic, 40, 2)
        one = over_seeds([values], None, statistic, 4000, 0)
        expected = estimate(values, statistic, 4000, 0)
        assert (one.value, one.n) == (pytest.approx(expected.value), 40)
        assert (one.low, one.high) == pytest.approx((expected.low, expected.high), abs=0.05)
        pair = over_seeds([values], [base], statistic, 4000, 0)
        expected = paired_difference(values, base, statistic, 4000, 0)
        assert pair.value == pytest.approx(expected.value)
        assert (pair.low, pair.high) == pytest.approx((expected.low, expected.high), abs=0.07)


def test_the_interval_over_seeds_and_items_covers_the_truth_where_both_vary():
    """Six seeds of 30 items, each seed and each item with an effect of its own."""
    covered = 0
    for trial in range(200):
        source = np.random.default_rng(trial)
        seeds, items = source.normal(0, 0.3, (6, 1)), source.normal(0, 0.5, (1, 30))
        found = over_seeds(0.3 + seeds + items + source.normal(0, 0.5, (6, 30)), None, "mean", 300, trial)
        covered += found.low <= 0.3 <= found.high
    assert 0.86 <= covered / 200 <= 0.99


def test_what_items_have_in_common_cancels_in_a_paired_difference_over_seeds():
    source = np.random.default_rng(0)
    items, noise = source.normal(0, 5, (1, 30)), source.normal(0, 0.1, (2, 3, 30))
    found = over_seeds(items + 0.2 + noise[0], items + noise[1], "mean", 500, 0)
    assert found.value == pytest.approx(0.2, abs=0.05)
    assert found.high - found.low < 0.2


def test_an_item_that_one_seed_could_not_score_counts_where_it_was_scored():
    found = over_seeds([[1.0, NAN, 3.0], [1.0, 2.0, 3.0]], None, "mean", 50, 0)
    assert (found.value, found.n) == (2.0, 3)
    assert over_seeds([[NAN, 1.0], [NAN, 3.0]], None, "mean", 50, 0).n == 1
    assert math.isnan(over_seeds([[NAN], [NAN]], None, "mean", 50, 0).value)


# Tests of differences.


def test_p_is_small_for_a_clear_difference_and_without_one_as_often_as_it_says():
    found = [sign_flip_p(np.random.default_rng(trial).normal(0, 1, 12), 400, trial) for trial in range(400)]
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.09
    assert min(found) > 0

    assert sign_flip_p(drawn(20, 0, 0.1), 1000, 0) < 0.01
    assert sign_flip_p([0.0] * 12, 1000, 0) == 1.0
    assert sign_flip_p([NAN], 1000, 0) == 1.0
    assert sign_flip_p([*drawn(20, 0, 0.1), NAN], 1000, 0) < 0.01


def test_holm_s_family_is_that_of_the_textbook_and_calls_a_true_null_in_at_most_one_of_twenty():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []

    called = 0
    for trial in range(400):
        p_values = np.random.default_rng(trial).uniform(size=6)
        called += min(holm(p_values.tolist())) <= 0.05
    assert called / 400 <= 0.08


# Informedness.


def test_informedness_is_the_macro_average_of_hits_less_false_alarms_and_requires_two_classes():
    source = np.random.default_rng(0)
    labels = source.choice(["care", "fairness", "loyalty"], 50, p=[0.6, 0.3, 0.1])
    chosen = source.choice(["care", "fairness", "loyalty", "liberty"], 50)
    expected = np.mean(
        [
            np.mean(chosen[labels == name] == name) - np.mean(chosen[labels != name] == name)
            for name in ("care", "fairness", "loyalty")
        ]
    )
    assert np.mean(informedness(chosen.tolist(), labels.tolist())) == pytest.approx(expected)

    assert np.isnan(informedness(["care"] * 4, ["care"] * 4)).all()
    assert informedness([], []) == ()
