"""Surgical informedness by hand: what counts as a flip, at which sign, at what cost."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest

from heal.evaluation.metrics import FoundationFigures
from heal.evaluation.surgical import (
    VARIANTS,
    Side,
    SurgicalInformedness,
    delta_logit,
    gated_selectivity,
    surgical_informedness,
    surgical_variants,
)
from heal.records import as_record

NAN = float("nan")
R, W = 0.1, 0.9  # called right, called wrong


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def both(
    base: Sequence[float],
    pos: Sequence[float],
    neg: Sequence[float],
    intent: int,
    mass_pos: float,
    mass_neg: float,
    k: float,
    weights: Sequence[float] | None = None,
) -> SurgicalInformedness:
    """Surgical informedness of two sides."""
    return surgical_informedness(base, Side(pos, mass_pos), Side(neg, mass_neg), intent, k, weights)


def test_wanted_flips_are_a_share_of_their_own_side_and_unwanted_ones_cost_k_times_theirs_as_published():
    # SI_fwd 0.32, SI_rev 1.00 and 100 x mass^2 = 80.1 give 52.9 at k = 1.
    base = [R] * 25 + [W] * 4
    pos = [W] * 8 + [R] * 17 + [W] * 4
    neg = [R] * 25 + [R] * 4
    found = both(base, pos, neg, 1, math.sqrt(0.801), 0.95, 1.0)
    assert (found.forward, found.reverse, found.n) == (pytest.approx(0.32), pytest.approx(1.0), 29)
    assert found.value == pytest.approx(52.9, abs=0.05)

    base = [R, R, R, R, W, W, W, W, W]
    pos = [W, W, W, R, R, W, W, W, W]  # 3 of 4 as wanted, 1 of 5 not
    neg = [W, R, R, R, R, R, R, W, W]  # 3 of 5 as wanted, 1 of 4 not
    for k in (1.0, 2.0):
        found = both(base, pos, neg, 1, 0.8, 0.9, k)
        assert (found.forward, found.reverse) == (pytest.approx(3 / 4 - k / 5), pytest.approx(3 / 5 - k / 4))
        assert found.value == pytest.approx(100 * 0.8**2 * (found.forward + found.reverse) / 2)
        assert (found.mass, found.n) == (0.8, 9)
        assert both(base, pos, neg, 1, 0.9, 0.8, k) == found


def test_an_intent_of_minus_one_wants_wrong_to_turn_right_and_turning_everything_round_changes_nothing():
    base, righted, wronged = [R, R, W, W], [R, R, R, R], [W, W, W, W]
    assert both(base, righted, wronged, -1, 1.0, 1.0, 1.0).value == 100.0
    assert both(base, wronged, righted, -1, 1.0, 1.0, 1.0).value == -100.0
    assert both(base, righted, wronged, 1, 1.0, 1.0, 2.0).value == -200.0

    base, pos, neg = (np.random.default_rng(seed).uniform(size=40) for seed in range(3))
    one = both(base, pos, neg, 1, 0.9, 0.8, 2.0)
    assert one.value != 0
    assert both(1 - base, 1 - pos, 1 - neg, -1, 0.9, 0.8, 2.0) == one


def test_what_changes_nothing_or_calls_everything_wrong_gains_nothing_and_ending_at_a_half_is_no_flip():
    base = [R, R, W, W]
    found = both(base, base, base, -1, 1.0, 1.0, 2.0)
    assert (found.value, found.forward, found.reverse) == (0.0, 0.0, 0.0)

    found = both([R, R, W, W], [W] * 4, [W] * 4, 1, 1.0, 1.0, 1.0)
    assert (found.value, found.forward, found.reverse) == (0.0, 1.0, -1.0)

    found = both([R, R, W, W], [0.5, W, 0.5, W], [R, R, 0.5, R], 1, 1.0, 1.0, 1.0)
    assert (found.forward, found.reverse) == (0.5, 0.5)


def test_a_vignette_or_a_side_without_a_number_is_left_out_and_without_any_there_is_none():
    base = [R, R, W, W, NAN]
    pos = [W, NAN, W, W, W]
    neg = [R, R, R, NAN, R]
    found = both(base, pos, neg, 1, 1.0, 1.0, 1.0)
    assert (found.forward, found.reverse, found.n) == (1.0, 1.0, 4)
    assert both(base, [NAN] * 5, neg, 1, 1.0, 1.0, 1.0).n == 3

    base, neg = [R, R, W, W], [R, W, R, R]
    found = both(base, [NAN] * 4, neg, 1, 1.0, 1.0, 1.0)
    assert math.isnan(found.forward)
    assert (found.reverse, found.value) == (0.5, 50.0)

    for base in ([], [W, W], [R, R], [NAN, NAN], [R, 0.5], [R, NAN]):
        found = both(base, [W] * len(base), [R] * len(base), 1, 1.0, 1.0, 1.0)
        assert all(math.isnan(value) for value in (found.value, found.forward, found.reverse)), base


def test_equal_weights_are_no_weights_and_a_weight_of_two_is_the_vignette_twice():
    base, pos, neg = (np.random.default_rng(seed).uniform(size=40) for seed in range(3))
    plain = both(base, pos, neg, 1, 0.9, 0.8, 1.0)
    for weight in (1.0, 0.3):
        weighted = both(base, pos, neg, 1, 0.9, 0.8, 1.0, [weight] * 40)
        assert (weighted.value, weighted.forward) == (pytest.approx(plain.value), pytest.approx(plain.forward))
    assert (plain.variant, weighted.variant) == ("k=1, unweighted", "k=1, weighted by human loadings")

    base, pos, neg = [R, R, W, W, W], [W, R, R, W, R], [R, W, R, R, W]
    weights = [2.0, 1.0, 1.0, 2.0, 0.0]
    rows = [0, 0, 1, 2, 3, 3]
    weighted = both(base, pos, neg, 1, 1.0, 1.0, 1.0, weights)
    repeated = both(*([w[row] for row in rows] for w in (base, pos, neg)), 1, 1.0, 1.0, 1.0)
    assert (weighted.forward, weighted.reverse) == (repeated.forward, repeated.reverse)
    assert weighted.forward == pytest.approx(2 / 3 - 1 / 3)


def test_both_published_variants_are_given_by_name_and_the_weighted_one_only_with_human_loadings():
    base, pos, neg = [R, R, W, W, R, W], [W, R, R, W, W, W], [R, R, R, W, R, R]
    of_target, loadings = [True] * 4 + [False] * 2, [0.9, 0.8, 0.7, 0.6, 0.2, 0.1]
    up, down = Side(pos, 0.9), Side(neg, 0.8)
    for first, second in ((up, down), (up, None), (None, down)):
        found = surgical_variants(base, first, second, 1, of_target, loadings)
        assert list(found) == list(VARIANTS) == ["k=2, unweighted", "k=1, weighted by human loadings"]
        narrowed = [None if side is None else replace(side, wrongness=side.wrongness[:4]) for side in (first, second)]
        assert_same(found["k=2, unweighted"], surgical_informedness(base[:4], *narrowed, 1, 2.0))
        weighted = found["k=1, weighted by human loadings"]
        assert_same(weighted, surgical_informedness(base, first, second, 1, 1.0, loadings))
        assert first is None or weighted.forward == pytest.approx(1.1 / 1.9 - 0.7 / 1.4)
        assert all(each.variant == name for name, each in found.items())

    found = surgical_variants([R, W], Side([W, W], 1.0), Side([R, R], 1.0), 1, [True, True])
    assert {name: each.value for name, each in found.items()} == {"k=2, unweighted": 100.0}


def test_what_makes_no_sense_is_an_error():
    side, short = Side([R, W], 1.0), Side([R], 1.0)
    given = {"w_base": [R, W], "pos": side, "neg": side, "intent": 1, "k": 1.0}
    for changes, complaint in (
        ({"intent": 0}, "intent must be"),
        ({"pos": None, "neg": None}, r"neither \+C nor -C was measured"),
        ({"pos": short}, r"2 vignettes against \[1, 2\]"),
        ({"pos": None, "neg": short}, r"2 vignettes against \[1\]"),
        ({"weights": [1.0]}, r"2 vignettes against \[2, 2\], 1 weights"),
        ({"weights": [1.0, -1.0]}, "a weight is negative"),
        ({"weights": [1.0, NAN]}, "a weight is negative or not finite"),
    ):
        with pytest.raises(ValueError, match=complaint):
            surgical_informedness(**(given | changes))


# One side alone.


def test_a_one_armed_value_is_that_arm_alone_and_says_that_it_is():
    base, pos, neg = ([*np.random.default_rng(seed).uniform(size=40)] for seed in range(3))
    up, down, still = Side(pos, 0.9), Side(neg, 0.8), Side(base, 1.0)
    for weights in (None, [0.5, 2.0] * 20):
        two = surgical_informedness(base, up, down, -1, 2.0, weights)
        for first, second, arm, mass in ((up, None, two.forward, 0.9), (None, down, two.reverse, 0.8)):
            one = surgical_informedness(base, first, second, -1, 2.0, weights)
            assert arm not in (0.0, two.value)
            assert one.value == pytest.approx(100 * mass**2 * arm)
            assert (one.mass, one.n, one.variant) == (mass, 40, two.variant)
            assert [math.isnan(each) for each in (one.forward, one.reverse)] == [first is None, second is None]
            held_against_base = surgical_informedness(base, first or still, second or still, -1, 2.0, weights)
            assert one.value == pytest.approx(2 * held_against_base.value)

    base, side, unscored = [R, R, W, W], Side([W, R, W, R], 1.0), Side([NAN] * 4, 1.0)
    for pos, neg, arms, label, n in (
        (side, side, 2, "two-sided", 4),
        (side, unscored, 2, "two-sided", 4),
        (side, None, 1, "one-armed", 4),
        (None, side, 1, "one-armed", 4),
        (None, unscored, 1, "one-armed", 0),
    ):
        found = surgical_informedness(base, pos, neg, 1, 1.0)
        assert (found.arms, found.label, found.n) == (arms, label, n)


def test_what_an_earlier_version_wrote_of_a_student_held_against_base_is_neither_of_the_two():
    written = {"value": 12.5, "forward": 0.25, "reverse": 0.0, "mass": 1.0, "variant": "k=2, unweighted", "n": 4}
    then = {"temperature": 1.0, "surgical": {"k=2, unweighted": written | {"other_side": "base"}}}
    read = as_record(FoundationFigures, then, "an older run").surgical["k=2, unweighted"]
    assert (read.value, read.forward, read.n) == (12.5, 0.25, 4)
    assert read.label == "base as the other side"
    assert as_record(SurgicalInformedness, asdict(read), "the same again") == read


def assert_same(one: SurgicalInformedness, other: SurgicalInformedness) -> None:
    """Equal, where NaN is equal to itself."""
    assert repr(one) == repr(other)


# Logits of wrongness.


def test_the_change_of_the_logit_is_averaged_over_pairs_that_have_both_and_clipped_where_certain():
    found = delta_logit([0.8, NAN, 0.6, 0.3], [0.5, 0.5, 0.5, NAN])
    first, second = logit(0.8), logit(0.6)
    assert found == pytest.approx(((first + second) / 2, abs(first - second) / math.sqrt(2), 2))

    assert delta_logit([1.0, 0.999], [0.0, 0.001]) == pytest.approx((2 * logit(0.99), 0.0, 2))

    assert math.isnan(delta_logit([NAN], [0.5]).mean)
    one = delta_logit([0.8], [0.5])
    assert (one.mean, one.n) == (pytest.approx(logit(0.8)), 1)
    assert math.isnan(one.sd)
    with pytest.raises(ValueError, match="1 vignettes against 2"):
        delta_logit([0.5], [0.5, 0.5])


# Gated selectivity.

POS = {"authority": [-1.0, -2.0], "care": [1.0, 2.0], "liberty": [0.5, -0.5]}
NEG = {"authority": [1.0, 1.0], "care": [0.0, 1.0], "liberty": [0.0, 2.0]}
# Changes: authority -2.5, care 1.0, liberty -1.0.


def test_selectivity_is_the_target_s_move_less_a_tenth_of_the_others_at_the_mass_that_is_left():
    assert gated_selectivity(POS, NEG, "authority", -1, 0.9, 0.6, 0.8) == pytest.approx((2.5 - 0.1) * 0.75**2)
    assert gated_selectivity(POS, NEG, "authority", 1, 0.9, 0.6, 0.8) == pytest.approx((-2.5 - 0.1) * 0.75**2)
    assert gated_selectivity(POS, NEG, "care", 1, 1.0, 1.0, 0.8) == pytest.approx(1.0 - 0.1 * (2.5 + 1.0) / 2)

    plain = gated_selectivity(POS, NEG, "authority", -1, 0.8, 0.8, 0.8)
    assert gated_selectivity(POS, NEG, "authority", -1, 0.99, 0.9, 0.8) == plain == pytest.approx(2.4)

    assert gated_selectivity(POS, POS, "authority", -1, 0.9, 0.9, 0.9) == 0.0
    there, back = (gated_selectivity(*sides, "authority", -1, 1.0, 1.0, 1.0) for sides in ((POS, NEG), (NEG, POS)))
    assert there + back == pytest.approx(2 * -0.1)


def test_rows_without_a_number_are_left_out_and_a_foundation_without_any_leaves_none():
    gaps = POS | {"authority": [-1.0, NAN]}
    assert gated_selectivity(gaps, NEG, "authority", -1, 1.0, 1.0, 1.0) == pytest.approx(2.0 - 0.1)
    assert math.isnan(gated_selectivity(POS | {"care": [NAN, NAN]}, NEG, "authority", -1, 1.0, 1.0, 1.0))
    assert math.isnan(gated_selectivity(POS, NEG, "authority", -1, 1.0, 1.0, 0.0))


def test_sides_that_do_not_match_are_an_error():
    for pos, neg, target, intent, complaint in (
        (POS, NEG, "authority", 0, "intent must be"),
        (POS, NEG, "loyalty", 1, "no 'loyalty' among others"),
        (POS, {"authority": [1.0, 1.0]}, "authority", 1, "no 'authority' among others"),
        ({"care": [1.0]}, {"care": [1.0]}, "care", 1, "no 'care' among others"),
        (POS | {"care": [1.0]}, NEG, "authority", 1, "1 vignettes against 2"),
    ):
        with pytest.raises(ValueError, match=complaint):
            gated_selectivity(pos, neg, target, intent, 1.0, 1.0, 1.0)
