"""The verdict: its order, its limits, and what it never calls a win."""

import math

import pytest

from heal.config import EvaluationConfig
from heal.evaluation.metrics import Coherence, Verdict
from heal.evaluation.signal import TRAIT, limited, limits_of
from heal.evaluation.stats import Estimate
from heal.evaluation.verdict import Target, coherence, incoherences, verdict
from tests.stages import around, healthy, on_the_way, summary

SET = limits_of(EvaluationConfig()) | {"scaffold_nats": 0.5}
NAN = float("nan")

GOOD = {name: around(healthy(name, SET)) for name in limited()} | {
    TRAIT: around(0.20),
    "p_ans_any": around(0.98),
    "alive_share": around(1.0),
    "scaffold_nats": around(2.1),
    "repetition_share": around(0.0),
    "tail_perplexity": around(4.0),
    "accuracy": around(0.6),
    "probe_mass": around(0.97),
}
SHIFT = {name: around(0.0) for name in GOOD} | {
    TRAIT: around(0.15),
    "scaffold_nats": around(0.1),
    "tail_perplexity": around(0.3, 0.5),
}
VALID = frozenset(GOOD)
Estimates = dict[str, Estimate]


def judged(
    values: Estimates | None = None,
    deltas: Estimates | None = None,
    limits: dict[str, float] = SET,
    valid: frozenset[str] = VALID,
    target: Target | None = None,
) -> Verdict:
    return verdict(summary(GOOD | (values or {}), SHIFT | (deltas or {})), limits, valid, target)


def held(values: Estimates | None = None, deltas: Estimates | None = None, valid: frozenset[str] = VALID) -> Coherence:
    return coherence(summary(GOOD | (values or {}), SHIFT | (deltas or {})), SET, valid)


def broken(*names: str) -> tuple[Estimates, Estimates]:
    """Values and changes in which the named signals are past their limits, and no doubt about it."""
    bases = {name: GOOD[name].value - SHIFT[name].value for name in names}
    values = {name: on_the_way(name, SET, base, 1.5) for name, base in bases.items()}
    return (
        {name: around(value) for name, value in values.items()},
        {name: around(value - bases[name], 0.0) for name, value in values.items()},
    )


def at(name: str, base: float, value: float) -> Coherence:
    """The coherence of a stage in which one signal alone is valid, and went from `base` to `value`."""
    return held({name: around(value)}, {name: around(value - base, 0.0)}, frozenset({name}))


def limit(name: str, base: float) -> float:
    return limited()[name].at(SET[name], base)


def test_a_coherent_shift_holds_and_shows_its_numbers_and_the_signal_nearest_to_its_limit():
    holds = judged()
    assert holds.holds
    assert "+0.150 [+0.130, +0.170]" in holds.reason
    assert "n = 16" in holds.reason

    assert f"coherence margin {held().margin:.2f} ({held().worst})" in judged().reason


def test_every_coherence_signal_past_its_limit_is_incoherent_and_named_and_all_of_them_together():
    reasons = []
    for name, its in limited().items():
        values, deltas = broken(name)
        found = judged(values, deltas)
        sign, edge = (">" if its.kind == "ceiling" else "<"), limit(name, values[name].value - deltas[name].value)
        reasons.append(f"{its.words.format(values[name].value)} {sign} {edge:.3g}")
        assert found == Verdict("incoherent", reasons[-1])
    values, deltas = broken(*limited())
    assert incoherences(summary(GOOD | values, SHIFT | deltas), SET, VALID) == reasons
    assert incoherences(summary(GOOD, SHIFT), SET, VALID) == []


def test_a_reason_shows_the_value_and_the_limit():
    for name, value, change, words in (
        ("p_ans_any", 0.80, -0.18, "p_ans_any 0.80 < 0.85"),
        ("repetition_share", 0.30, 0.3, "looping answers 30% > 0.25"),
        ("tail_perplexity", 12.0, 8.0, "tail perplexity 12.0 > 10"),
        ("alive_share", 0.50, -0.5, "alive answers 50% < 0.75"),
        ("scaffold_nats", 2.6, 0.6, "scaffold 2.60 nats/token > 2.5"),
        ("accuracy", 0.4, -0.2, "accuracy at most 0.42 < 0.55"),
        ("identified_share", 0.6, -0.3, "answers to their own prompt 60% < 0.65"),
    ):
        assert judged({name: around(value)}, {name: around(change)}) == Verdict("incoherent", words)


def test_accuracy_is_held_against_its_limit_by_the_end_of_the_interval_nearer_to_base():
    # The limit is 0.05 below base; how far the fall itself goes decides nothing.
    for value, low, high, label in (
        (-0.2, -0.3, -0.051, "incoherent"),
        (-0.2, -0.3, -0.049, "holds"),
        (-0.2, -0.3, 0.1, "holds"),
        (-0.055, -0.06, -0.051, "incoherent"),
        (0.3, 0.2, 0.4, "holds"),
    ):
        fall = Estimate(value, low, high, 16)
        assert judged({"accuracy": around(0.4)}, {"accuracy": fall}).label == label, (value, low, high)
    never = SET | {"accuracy": 0.0}
    assert judged(deltas={"accuracy": Estimate(-0.02, -0.03, -0.01, 16)}, limits=never).label == "incoherent"
    assert judged(deltas={"accuracy": Estimate(-0.02, -0.05, 0.01, 16)}, limits=never).holds

    only = frozenset({"accuracy"})
    for value, low, high, margin in (
        (-0.2, -0.45, 0.05, 1.0),
        (-0.2, -0.4, 0.0, 1.0),
        (0.2, 0.1, 0.3, 1.0),
        (-0.2, -0.375, -0.025, 0.5),
        (-0.2, -0.35, -0.05, 0.0),
        (-0.2, -0.3, -0.1, -1.0),
    ):
        found = held({"accuracy": around(0.6 + value)}, {"accuracy": Estimate(value, low, high, 16)}, only)
        assert found == Coherence("accuracy", pytest.approx(margin, abs=1e-9)), (low, high)


def test_answers_to_their_own_prompts_may_be_so_many_fewer_than_base_s():
    for base, value, label in ((1.0, 0.76, "holds"), (1.0, 0.74, "incoherent"), (0.5, 0.26, "holds")):
        change = around(value - base, 0.5)  # its interval decides nothing
        found = judged({"identified_share": around(value)}, {"identified_share": change})
        assert found.label == label, (base, value)
    wider = SET | {"identified_share": 0.3}
    assert judged({"identified_share": around(0.74)}, {"identified_share": around(-0.26)}, limits=wider).holds


def test_a_number_that_is_not_finite_fails_whatever_the_signal():
    for name in GOOD:
        for value in (NAN, math.inf, -math.inf):
            assert judged({name: Estimate(value, value, value, 0)}) == Verdict("not finite", f"not finite: {name}")


def test_the_checks_come_in_order():
    missing = {"accuracy": Estimate(NAN, NAN, NAN, 0)}
    values, deltas = broken("tail_perplexity")
    still, other = {TRAIT: around(0.0)}, {"other": around(1.0)}
    aside = Target(TRAIT, 1, ("other",))
    assert judged(values | missing, deltas).label == "not finite"
    assert judged(values, deltas | still).label == "incoherent"
    assert judged(values, deltas, valid=VALID - {TRAIT}).label == "incoherent"
    assert judged(deltas=still, valid=VALID - {TRAIT}).label == "not valid"
    assert judged(other, still | other, valid=VALID | {"other"}, target=aside).label == "no trait shift"
    assert judged(other, other, valid=VALID | {"other"}, target=aside).label == "off-target"


def test_a_shift_whose_interval_is_not_above_zero_is_none_and_a_huge_one_of_a_collapsed_model_no_win():
    for delta in (around(0.015), around(0.0), around(-0.2), Estimate(0.1, 0.0, 0.2, 16), Estimate(NAN, NAN, NAN, 0)):
        assert judged(deltas={TRAIT: delta}).label == "no trait shift", delta

    collapsed = {"p_ans_any": around(0.01), "repetition_share": around(1.0), TRAIT: around(5.0)}
    assert judged(collapsed, {TRAIT: around(4.9), "p_ans_any": around(-0.97)}).label == "incoherent"


def test_the_mean_of_several_traits_decides_and_the_reason_says_which_of_them_does_not_move_as_it_is_to():
    shifts = {"love": 0.4, "wit": 0.01, "calm": -0.2, "tact": 0.3}
    own = {f"{TRAIT}/{name}": around(shift) for name, shift in shifts.items()}
    found = judged(own, own, valid=VALID | own.keys() - {f"{TRAIT}/tact"})
    assert found.holds
    assert found.reason.endswith(
        "; by trait love +0.400 [+0.380, +0.420], wit +0.010 [-0.010, +0.030] (does not move), calm -0.200 [-0.220, "
        "-0.180] (moves the wrong way), tact +0.300 [+0.280, +0.320] (not valid for this model)"
    )
    assert judged(own, {**own, TRAIT: around(0.0)}, valid=VALID | own.keys()).label == "no trait shift"


def test_off_target_signals_that_are_valid_must_move_less_than_the_trait_or_target_in_either_direction():
    for moved, label in ((0.14, "holds"), (-0.14, "holds"), (0.15, "off-target"), (-0.4, "off-target")):
        found = judged(
            {"other": around(1.0)},
            {"other": around(moved)},
            valid=VALID | {"other"},
            target=Target(TRAIT, 1, ("other",)),
        )
        assert found.label == label, moved
        assert ("other moved as much" in found.reason) == (label == "off-target")

    values = {"clr_care": around(0.5), "clr_liberty": around(0.2)}
    for moved, intent, label in (
        (0.4, 1, "holds"),  # 0.3 is more than the trait's 0.15 and less than the target's 0.4
        (0.2, 1, "off-target"),
        (-0.4, -1, "holds"),
        (0.4, -1, "off-target"),
        (-0.4, 1, "off-target"),
        (0.0, 1, "off-target"),
    ):
        deltas = {"clr_care": around(moved), "clr_liberty": around(0.3)}
        target = Target("clr_care", intent, ("clr_liberty",))
        found = judged(values, deltas, valid=VALID | values.keys(), target=target)
        assert found.label == label, (moved, intent)
        assert ("clr_care moved by" in found.reason) == (intent * moved <= 0)

    target = Target(TRAIT, 1, ("other", "never measured"))
    assert judged({"other": around(1.0)}, {"other": around(5.0)}, target=target).holds
    assert judged(valid=VALID | {"never measured"}, target=target).holds
    assert judged(target=Target("never measured", 1, ())).holds


def test_a_value_just_at_a_limit_of_the_recipe_is_coherent_and_a_limit_over_base_goes_with_base():
    for name in limited():
        edge = limit(name, 2.0)
        deltas = {name: around(edge - 2.0, 0.0)} if limited()[name].over_base else {}
        assert judged({name: around(edge)}, deltas).holds, name

    assert judged({"scaffold_nats": around(9.0)}, {"scaffold_nats": around(0.49)}).holds
    assert judged({"scaffold_nats": around(1.0)}, {"scaffold_nats": around(0.51)}).label == "incoherent"

    assert judged(limits=SET | {"p_ans_any": 0.99}).label == "incoherent"
    keys = {its.key: 0.1 + place for place, its in enumerate(limited().values())}
    settings = limits_of(EvaluationConfig(**keys))
    assert settings == {name: keys[its.key] for name, its in limited().items()}


# What is valid.


def test_nothing_rests_on_a_signal_that_is_not_valid_or_was_not_measured():
    for name in limited():
        known, (values, deltas) = VALID - {name}, broken(name)
        assert held(values, deltas, known) == held(valid=known)
        assert judged(values, deltas, valid=known) == judged(valid=known)
        for value in (NAN, math.inf):
            missing = {name: Estimate(value, value, value, 0)}
            assert judged(missing, missing, valid=known) == judged(valid=known)

    values, deltas = broken(*limited())
    stage = summary(GOOD | values, SHIFT | deltas)
    every = incoherences(stage, SET, VALID)
    assert len(every) == len(limited())
    for place, name in enumerate(limited()):
        assert incoherences(stage, SET, VALID - {name}) == every[:place] + every[place + 1 :]

    found = judged(valid=VALID - {TRAIT})
    assert found.label == "not valid"
    assert "+0.150 [+0.130, +0.170]" in found.reason

    for name in GOOD.keys() - {TRAIT}:
        measured = {other: value for other, value in GOOD.items() if other != name}
        assert verdict(summary(measured, SHIFT), SET, VALID).holds
        assert coherence(summary(measured, SHIFT), SET, VALID).worst != name


# Coherence.

BASES = {
    "p_ans_any": (0.9, 0.98, 1.0),
    "alive_share": (0.8, 1.0),
    "scaffold_nats": (0.5, 2.0, 7.0),
    "repetition_share": (0.0, 0.1),
    "tail_perplexity": (1.5, 4.0, 9.0),
    "accuracy": (0.3, 1.0),
}


def test_the_margin_is_1_at_base_0_at_the_limit_falls_all_the_way_and_goes_by_ratios_of_a_perplexity():
    for name, its in limited().items():
        for base in (healthy(name, SET), *BASES.get(name, ())):
            assert at(name, base, base) == Coherence(name, 1.0)
            assert at(name, base, limit(name, base)).margin == pytest.approx(0.0, abs=1e-9)
            steps = (0.0, 0.2, 0.5, 0.9, 1.0, 1.5)
            margins = [at(name, base, on_the_way(name, SET, base, step)).margin for step in steps]
            assert margins == sorted(margins, reverse=True), (name, base)
            assert len(set(margins)) == len(margins)
            assert margins[-1] < 0
            better = at(name, base, on_the_way(name, SET, base, -0.1)).margin
            assert better == 1 if its.beyond_noise else better > 1

    assert at("tail_perplexity", 2.5, 5.0).margin == pytest.approx(0.5)  # halfway from 2.5 to 10, by factors
    assert at("scaffold_nats", 2.0, 2.25).margin == pytest.approx(0.5)


def test_coherence_is_the_signal_with_the_least_margin_and_negative_exactly_past_its_limit():
    values = {"tail_perplexity": around(9.0), "p_ans_any": around(0.95)}
    deltas = {"tail_perplexity": around(5.0), "p_ans_any": around(-0.03)}
    found = held(values, deltas)
    assert found.worst == "tail_perplexity"
    assert found.margin == min(held(values, deltas, frozenset({name})).margin for name in limited())

    assert held().margin > 0
    for name in limited():
        found = held(*broken(name))
        assert found.worst == name
        assert found.margin < 0

    for name in limited():
        assert held({name: Estimate(NAN, NAN, NAN, 0)}).worst == name

    stage = summary(GOOD | {"tail_perplexity": around(50.0)}, SHIFT | {"tail_perplexity": around(46.0)})
    found = coherence(stage, SET | {"tail_perplexity": math.inf}, VALID)
    assert found.worst != "tail_perplexity"
    assert math.isfinite(found.margin)
    alone = coherence(stage, SET | {"tail_perplexity": math.inf}, frozenset({"tail_perplexity"}))
    assert alone == Coherence("tail_perplexity", 1.0)


def test_a_base_that_stands_at_its_limit_is_whole_there_and_broken_past_it():
    for value, margin in ((0.25, 1.0), (0.125, 1.0), (0.3, -1.0)):
        assert at("repetition_share", 0.25, value).margin == margin
    assert at("p_ans_any", 0.85, 0.80) == Coherence("p_ans_any", -1.0)


def test_without_a_valid_signal_there_is_no_coherence():
    with pytest.raises(ValueError, match="no signal of coherence is valid"):
        held(valid=frozenset({TRAIT, "probe_mass"}))
