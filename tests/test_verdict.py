"""The verdict: its order, its limits, and what it never calls a win."""

import math

import pytest

from heal.config import EvaluationConfig
from heal.evaluation.metrics import Coherence, Verdict
from heal.evaluation.signal import TRAIT, limited, limits_of
from heal.evaluation.stats import Estimate
from heal.evaluation.verdict import Target, coherence, incoherences, verdict
from tests.stages import around, summary

# What each limit is set to; that of a signal not named here is its default, or half a unit over base.
SET = {name: 0.5 if limit.over_base else limit.default for name, limit in limited().items()} | {
    "p_ans_any": 0.85,
    "repetition_share": 0.25,
    "tail_perplexity": 10.0,
    "alive_share": 0.75,
    "scaffold_nats": 0.5,
}
NAN = float("nan")
Estimates = dict[str, Estimate]


def limit(name: str, base: float) -> float:
    return limited()[name].at(SET[name], base)


def beside(name: str, base: float, past: bool) -> float:
    """A value a tenth beyond the limit of a signal whose value at base is `base`, or as much within it."""
    edge = limit(name, base)
    upwards = past == (limited()[name].kind == "ceiling")
    return edge + (0.1 if upwards else -0.1) * (abs(edge) or 1.0)


# Every signal with a limit stands within it at base, and a round has moved two of them a little.
WHOLE = {name: 2.0 if known.over_base else beside(name, NAN, past=False) for name, known in limited().items()}
MOVED = {"scaffold_nats": 0.1, "tail_perplexity": 0.3}
GOOD = {name: around(base + MOVED.get(name, 0.0)) for name, base in WHOLE.items()} | {
    TRAIT: around(0.20),
    "accuracy": around(0.6),
}
SHIFT = {name: around(MOVED.get(name, 0.0)) for name in WHOLE} | {TRAIT: around(0.15), "accuracy": around(0.0)}
VALID = frozenset(GOOD)
# What each signal with a limit is past it.
BREAKS = {name: beside(name, base, past=True) for name, base in WHOLE.items()}
# Values past a limit, the change to base that goes with them, and how a reason shows them.
REASONS = {
    "p_ans_any": (0.80, -0.18, "p_ans_any 0.80 < 0.85"),
    "repetition_share": (0.30, 0.3, "looping answers 30% > 0.25"),
    "tail_perplexity": (12.0, 8.0, "tail perplexity 12.0 > 10"),
    "alive_share": (0.50, -0.5, "alive answers 50% < 0.75"),
    "scaffold_nats": (2.6, 0.6, "scaffold 2.60 nats/token > 2.5"),
}


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
    """Values and changes, without noise, in which the named signals are past their limits."""
    return (
        {name: around(BREAKS[name]) for name in names},
        {name: around(BREAKS[name] - WHOLE[name], 0.0) for name in names},
    )


def reason(name: str) -> str:
    """How a verdict says that a signal is where `broken` puts it."""
    known = limited()[name]
    sign = ">" if known.kind == "ceiling" else "<"
    return f"{known.words.format(BREAKS[name])} {sign} {limit(name, WHOLE[name]):.3g}"


def at(name: str, base: float, value: float) -> Coherence:
    """The coherence of a stage in which one signal alone is valid, and went from `base` to `value`, without noise."""
    return held({name: around(value)}, {name: around(value - base, 0.0)}, frozenset({name}))


def test_a_coherent_shift_holds_and_shows_its_numbers():
    holds = judged()
    assert holds.holds
    assert "+0.150 [+0.130, +0.170]" in holds.reason
    assert "n = 16" in holds.reason


def test_every_coherence_signal_past_its_limit_is_incoherent_and_named_and_all_of_them_together():
    for name in limited():
        assert judged(*broken(name)) == Verdict("incoherent", reason(name))
    values, deltas = broken(*limited())
    every = incoherences(summary(GOOD | values, SHIFT | deltas | {"accuracy": around(-0.1)}), SET, VALID)
    assert every == [*map(reason, limited()), "accuracy -0.10 on general questions"]
    assert incoherences(summary(GOOD, SHIFT), SET, VALID) == []


def test_a_reason_shows_the_value_and_the_limit():
    assert list(REASONS) == [name for name in limited() if name in REASONS]
    for name, (value, change, words) in REASONS.items():
        assert judged({name: around(value)}, {name: around(change)}) == Verdict("incoherent", words)


def test_accuracy_is_incoherent_where_its_whole_interval_fell():
    assert judged(deltas={"accuracy": around(-0.1)}).label == "incoherent"
    assert judged(deltas={"accuracy": around(-0.1, 0.1)}).holds
    assert judged(deltas={"accuracy": around(0.3)}).holds


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


def test_a_collapsed_model_with_a_huge_shift_is_no_win():
    collapsed = {"p_ans_any": around(0.01), "repetition_share": around(1.0), TRAIT: around(5.0)}
    assert judged(collapsed, {TRAIT: around(4.9), "p_ans_any": around(-0.97)}).label == "incoherent"


def test_a_shift_whose_interval_is_not_above_zero_is_none():
    for delta in (around(0.015), around(0.0), around(-0.2), Estimate(0.1, 0.0, 0.2, 16), Estimate(NAN, NAN, NAN, 0)):
        assert judged(deltas={TRAIT: delta}).label == "no trait shift", delta


def test_off_target_signals_must_move_less_than_the_trait_in_either_direction():
    for moved, label in ((0.14, "holds"), (-0.14, "holds"), (0.15, "off-target"), (-0.4, "off-target")):
        found = judged(
            {"other": around(1.0)},
            {"other": around(moved)},
            valid=VALID | {"other"},
            target=Target(TRAIT, 1, ("other",)),
        )
        assert found.label == label, moved
        assert ("other moved as much" in found.reason) == (label == "off-target")


def test_off_target_signals_are_held_against_the_target_which_moves_as_it_is_meant_to():
    values = {"clr_care": around(0.5), "clr_liberty": around(0.2)}
    for moved, intent, label in (
        (0.4, 1, "holds"),  # 0.3 is more than the trait's 0.15 and less than the target's 0.4
        (0.2, 1, "off-target"),
        (-0.4, -1, "holds"),
        (0.4, -1, "off-target"),
        (-0.4, 1, "off-target"),
    ):
        deltas = {"clr_care": around(moved), "clr_liberty": around(0.3)}
        target = Target("clr_care", intent, ("clr_liberty",))
        found = judged(values, deltas, valid=VALID | values.keys(), target=target)
        assert found.label == label, (moved, intent)
        assert ("clr_care moved by" in found.reason) == (intent * moved < 0)


def test_an_off_target_signal_that_is_not_valid_or_was_not_measured_is_not_looked_at():
    target = Target(TRAIT, 1, ("other", "never measured"))
    assert judged({"other": around(1.0)}, {"other": around(5.0)}, target=target).holds
    assert judged(valid=VALID | {"never measured"}, target=target).holds
    assert judged(target=Target("never measured", 1, ())).holds


def test_a_value_just_at_a_limit_is_coherent():
    for name in BREAKS:
        edge = limit(name, 2.0)
        deltas = {name: around(edge - 2.0)} if limited()[name].over_base else {}
        assert judged({name: around(edge)}, deltas).holds, name


def test_a_limit_over_base_goes_with_base():
    assert judged({"scaffold_nats": around(9.0)}, {"scaffold_nats": around(0.49)}).holds
    assert judged({"scaffold_nats": around(1.0)}, {"scaffold_nats": around(0.51)}).label == "incoherent"


def test_the_limits_are_the_recipe_s_each_from_its_own_key():
    assert judged(limits=SET | {"p_ans_any": 0.99}).label == "incoherent"
    keys = {limit.key: 0.1 + place for place, limit in enumerate(limited().values())}
    settings = limits_of(EvaluationConfig(**keys))
    assert settings == {name: keys[limit.key] for name, limit in limited().items()}


# What is valid.


def test_nothing_rests_on_a_coherence_signal_that_is_not_valid():
    for name in BREAKS:
        known, (values, deltas) = VALID - {name}, broken(name)
        assert held(values, deltas, known) == held(valid=known)
        assert judged(values, deltas, valid=known) == judged(valid=known)
        for value in (NAN, math.inf):
            missing = {name: Estimate(value, value, value, 0)}
            assert judged(missing, missing, valid=known) == judged(valid=known)
    assert judged(deltas={"accuracy": around(-0.3)}, valid=VALID - {"accuracy"}).holds


def test_a_shift_of_a_trait_whose_readout_is_not_valid_is_not_called_one():
    found = judged(valid=VALID - {TRAIT})
    assert found.label == "not valid"
    assert "+0.150 [+0.130, +0.170]" in found.reason


def test_a_signal_that_was_not_measured_is_not_missed():
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
}


def test_the_margin_is_1_at_base_0_at_the_limit_and_falls_all_the_way():
    for name in limited():
        for base in BASES.get(name, (WHOLE[name],)):
            edge = limit(name, base)
            assert at(name, base, base) == Coherence(name, 1.0)
            assert at(name, base, edge).margin == pytest.approx(0.0, abs=1e-9)
            steps = (-0.1, 0.0, 0.2, 0.5, 0.9, 1.0, 1.5)
            margins = [at(name, base, base + step * (edge - base)).margin for step in steps]
            assert margins == sorted(margins, reverse=True), (name, base)
            assert len(set(margins)) == len(margins)
            assert margins[-1] < 0


def test_distances_of_a_perplexity_are_ratios():
    assert at("tail_perplexity", 2.5, 5.0).margin == pytest.approx(0.5)  # halfway from 2.5 to 10, by factors
    assert at("scaffold_nats", 2.0, 2.25).margin == pytest.approx(0.5)


def test_coherence_is_the_signal_with_the_least_margin():
    values = {"tail_perplexity": around(9.0), "p_ans_any": around(0.95)}
    deltas = {"tail_perplexity": around(5.0), "p_ans_any": around(-0.03)}
    found = held(values, deltas)
    assert found.worst == "tail_perplexity"
    assert found.margin == min(held(values, deltas, frozenset({name})).margin for name in BREAKS)


def test_coherence_is_negative_exactly_where_a_signal_is_past_its_limit():
    assert held().margin > 0
    for name in BREAKS:
        found = held(*broken(name))
        assert found.worst == name
        assert found.margin < 0


def test_a_signal_that_is_not_finite_is_the_worst():
    for name in BREAKS:
        assert held({name: Estimate(NAN, NAN, NAN, 0)}).worst == name


def test_a_base_that_stands_at_its_limit_is_whole_there_and_broken_past_it():
    for value, margin in ((0.25, 1.0), (0.125, 1.0), (0.3, -1.0)):
        assert at("repetition_share", 0.25, value).margin == margin
    assert at("p_ans_any", 0.85, 0.80) == Coherence("p_ans_any", -1.0)


def test_without_a_valid_signal_there_is_no_coherence():
    with pytest.raises(ValueError, match="no signal of coherence is valid"):
        held(valid=frozenset({TRAIT, "accuracy"}))


def test_a_verdict_that_holds_says_which_signal_is_nearest_to_its_limit():
    assert f"coherence margin {held().margin:.2f} ({held().worst})" in judged().reason


def test_a_signal_whose_limit_is_infinite_is_never_the_worst():
    stage = summary(GOOD | {"tail_perplexity": around(50.0)}, SHIFT | {"tail_perplexity": around(46.0)})
    found = coherence(stage, SET | {"tail_perplexity": math.inf}, VALID)
    assert found.worst != "tail_perplexity"
    assert math.isfinite(found.margin)
