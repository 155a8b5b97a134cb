"""The verdict: its order, its floors, and what it never calls a win."""

import math
from dataclasses import replace

import pytest

from heal.config import EvaluationConfig
from heal.evaluation.stats import Estimate
from heal.evaluation.verdict import LIMITED, Coherence, Floors, Verdict, coh_cost, coherence, incoherences, verdict

FLOORS = Floors(
    min_p_ans_any=0.85,
    max_repetition_share=0.25,
    max_tail_perplexity=10.0,
    min_alive_share=0.75,
    max_scaffold_rise=0.5,
)
NAN = float("nan")


def around(value: float, width: float = 0.02) -> Estimate:
    return Estimate(value, value - width, value + width, 16)


GOOD = {
    "persona_log_ratio": around(0.20),
    "p_ans_any": around(0.98),
    "alive_share": around(1.0),
    "scaffold_nats": around(2.1),
    "repetition_share": around(0.0),
    "tail_perplexity": around(4.0),
    "accuracy": around(0.6),
}
SHIFT = {
    "persona_log_ratio": around(0.15),
    "p_ans_any": around(0.0),
    "alive_share": around(0.0),
    "scaffold_nats": around(0.1),
    "repetition_share": around(0.0),
    "tail_perplexity": around(0.3, 0.5),
    "accuracy": around(0.0),
}
VALID = frozenset(GOOD)
# What a signal is past its limit, the change to base that goes with it, and how a reason shows it.
BREAKS = {
    "p_ans_any": (0.80, -0.18, "p_ans_any 0.80 < 0.85"),
    "alive_share": (0.50, -0.5, "alive answers 50% < 0.75"),
    "scaffold_nats": (2.6, 0.6, "scaffold 2.60 nats/token > 2.5"),
    "repetition_share": (0.30, 0.3, "looping answers 30% > 0.25"),
    "tail_perplexity": (12.0, 8.0, "tail perplexity 12.0 > 10"),
}


def judged(
    values: dict[str, Estimate] | None = None,
    deltas: dict[str, Estimate] | None = None,
    floors: Floors = FLOORS,
    valid: frozenset[str] = VALID,
    **more,
) -> Verdict:
    return verdict(GOOD | (values or {}), SHIFT | (deltas or {}), floors, valid, **more)


def broken(*signals: str) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Values and changes in which the named signals are past their limits."""
    return (
        {name: around(BREAKS[name][0]) for name in signals},
        {name: around(BREAKS[name][1]) for name in signals},
    )


def at(name: str, base: float, value: float) -> Coherence:
    """The coherence of a stage in which one signal alone is valid, and went from `base` to `value`."""
    return coherence(GOOD | {name: around(value)}, SHIFT | {name: around(value - base)}, FLOORS, {name})


def limit(name: str, base: float) -> float:
    return LIMITED[name].limit(FLOORS, base)


def test_a_coherent_shift_holds_and_shows_its_numbers():
    found = judged()
    assert found.holds
    assert "+0.150 [+0.130, +0.170]" in found.reason
    assert "n = 16" in found.reason


def test_every_signal_with_a_limit_is_broken_somewhere_here():
    assert BREAKS.keys() == LIMITED.keys()


@pytest.mark.parametrize("signal", LIMITED)
def test_each_coherence_signal_past_its_floor_is_incoherent_and_named(signal: str):
    assert judged(*broken(signal)) == Verdict("incoherent", BREAKS[signal][2])


def test_accuracy_whose_whole_interval_fell_is_incoherent():
    assert judged(deltas={"accuracy": around(-0.1)}).label == "incoherent"


def test_accuracy_whose_interval_reaches_zero_is_no_fall():
    assert judged(deltas={"accuracy": around(-0.1, 0.1)}).holds


def test_every_broken_signal_is_named():
    values, deltas = broken(*LIMITED)
    found = incoherences(GOOD | values, SHIFT | deltas | {"accuracy": around(-0.1)}, FLOORS, VALID)
    assert found == [*(BREAKS[name][2] for name in LIMITED), "accuracy -0.10 on general questions"]
    assert incoherences(GOOD, SHIFT, FLOORS, VALID) == []


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("signal", GOOD)
def test_a_number_that_is_not_finite_fails_whatever_the_signal(signal: str, value: float):
    found = judged({signal: Estimate(value, value, value, 0)})
    assert found == Verdict("not finite", f"not finite: {signal}")


def test_not_finite_is_said_before_incoherent():
    assert judged({"accuracy": Estimate(NAN, NAN, NAN, 0), **broken("p_ans_any")[0]}).label == "not finite"


def test_incoherent_is_said_before_no_shift():
    values, deltas = broken("tail_perplexity")
    assert judged(values, deltas | {"persona_log_ratio": around(0.0)}).label == "incoherent"


def test_no_shift_is_said_before_off_target():
    deltas = {"persona_log_ratio": around(0.0), "other": around(1.0)}
    found = judged({"other": around(1.0)}, deltas, valid=VALID | {"other"}, off_target=("other",))
    assert found.label == "no trait shift"


def test_a_collapsed_model_with_a_huge_shift_is_no_win():
    collapsed = {"p_ans_any": around(0.01), "repetition_share": around(1.0), "persona_log_ratio": around(5.0)}
    deltas = {"persona_log_ratio": around(4.9), "p_ans_any": around(-0.97)}
    assert judged(collapsed, deltas).label == "incoherent"


@pytest.mark.parametrize("delta", [around(0.015), around(0.0), around(-0.2), Estimate(0.1, 0.0, 0.2, 16)])
def test_a_shift_whose_interval_is_not_above_zero_is_none(delta: Estimate):
    assert judged(deltas={"persona_log_ratio": delta}).label == "no trait shift"


def test_a_shift_that_cannot_be_measured_is_none():
    assert judged(deltas={"persona_log_ratio": Estimate(NAN, NAN, NAN, 0)}).label == "no trait shift"


@pytest.mark.parametrize(
    ("moved", "label"), [(0.14, "holds"), (-0.14, "holds"), (0.15, "off-target"), (-0.4, "off-target")]
)
def test_off_target_signals_must_move_less_than_the_trait_in_either_direction(moved: float, label: str):
    found = judged({"other": around(1.0)}, {"other": around(moved)}, valid=VALID | {"other"}, off_target=("other",))
    assert found.label == label
    assert ("other moved as much" in found.reason) == (label == "off-target")


def test_another_trait_signal_may_be_judged():
    deltas = {"care_nats": around(-0.3), "persona_log_ratio": around(0.2)}
    found = judged({"care_nats": around(-1.0)}, deltas, valid=VALID | {"care_nats"}, trait="care_nats")
    assert found.label == "no trait shift"


def test_off_target_signals_are_held_against_the_target_where_there_is_one():
    values = {"clr_care": around(0.5), "clr_liberty": around(0.2)}
    deltas = {"clr_care": around(0.4), "clr_liberty": around(0.3)}
    known = VALID | values.keys()
    found = judged(values, deltas, valid=known, target="clr_care", off_target=("clr_liberty",))
    assert found.holds  # 0.3 is more than the trait's 0.15 and less than the target's 0.4
    assert judged(values, deltas, valid=known, off_target=("clr_liberty",)).label == "off-target"


@pytest.mark.parametrize(
    ("moved", "intent", "label"), [(0.5, -1, "off-target"), (-0.5, -1, "holds"), (-0.5, 1, "off-target")]
)
def test_a_target_that_moved_against_the_trait_s_intent_does_not_hold(moved: float, intent: int, label: str):
    values = {"clr_authority": around(0.5), "clr_liberty": around(0.2)}
    deltas = {"clr_authority": around(moved), "clr_liberty": around(0.2)}
    found = judged(
        values, deltas, valid=VALID | values.keys(), target="clr_authority", intent=intent, off_target=("clr_liberty",)
    )
    assert found.label == label
    assert ("clr_authority moved by" in found.reason) == (label == "off-target")


@pytest.mark.parametrize("signal", LIMITED)
def test_a_value_just_at_a_floor_is_coherent(signal: str):
    at_limit = limit(signal, 2.0)
    deltas = {signal: around(at_limit - 2.0)} if signal == "scaffold_nats" else {}
    assert judged({signal: around(at_limit)}, deltas).holds


def test_the_scaffold_s_limit_goes_with_base():
    assert judged({"scaffold_nats": around(9.0)}, {"scaffold_nats": around(0.49)}).holds
    assert judged({"scaffold_nats": around(1.0)}, {"scaffold_nats": around(0.51)}).label == "incoherent"


def test_the_floors_are_the_caller_s():
    assert judged(floors=replace(FLOORS, min_p_ans_any=0.99)).label == "incoherent"


def test_the_recipe_s_floors_are_taken_each_from_its_own_key():
    settings = EvaluationConfig(
        min_p_ans_any=0.1,
        max_repetition_share=0.2,
        max_tail_perplexity=3.0,
        min_alive_share=0.4,
        max_scaffold_rise=0.5,
    )
    assert Floors.of(settings) == Floors(0.1, 0.2, 3.0, 0.4, 0.5)


# What is valid.


@pytest.mark.parametrize("signal", LIMITED)
@pytest.mark.parametrize("value", ["past its limit", NAN, math.inf])
def test_a_verdict_never_rests_on_an_invalid_coherence_signal(signal: str, value: float | str):
    values, deltas = broken(signal)
    if isinstance(value, float):
        values[signal] = deltas[signal] = Estimate(value, value, value, 0)
    assert judged(values, deltas, valid=VALID - {signal}) == judged(valid=VALID - {signal})


def test_an_invalid_accuracy_that_fell_breaks_nothing():
    assert judged(deltas={"accuracy": around(-0.3)}, valid=VALID - {"accuracy"}).holds


def test_an_invalid_off_target_signal_that_moved_more_is_not_looked_at():
    assert judged({"other": around(1.0)}, {"other": around(5.0)}, off_target=("other",)).holds


def test_a_shift_of_a_trait_whose_readout_is_not_valid_is_not_called_one():
    found = judged(valid=VALID - {"persona_log_ratio"})
    assert found.label == "not valid"
    assert "+0.150 [+0.130, +0.170]" in found.reason


def test_incoherent_is_said_before_not_valid():
    assert judged(*broken("alive_share"), valid=VALID - {"persona_log_ratio"}).label == "incoherent"


def test_a_signal_that_was_not_measured_is_not_missed():
    values, deltas = ({n: e for n, e in each.items() if n != "alive_share"} for each in (GOOD, SHIFT))
    assert verdict(values, deltas, FLOORS, VALID - {"alive_share"}).holds
    assert coherence(values, deltas, FLOORS, VALID).worst != "alive_share"


# Coherence.

BASES = {
    "p_ans_any": (0.9, 0.98, 1.0),
    "alive_share": (0.8, 1.0),
    "scaffold_nats": (0.5, 2.0, 7.0),
    "repetition_share": (0.0, 0.1),
    "tail_perplexity": (1.5, 4.0, 9.0),
}
CASES = [(name, base) for name, bases in BASES.items() for base in bases]


@pytest.mark.parametrize(("name", "base"), CASES)
def test_the_margin_is_1_at_base_0_at_the_limit_and_negative_beyond(name: str, base: float):
    edge = limit(name, base)
    past = edge * 1.1 if LIMITED[name].rises else edge * 0.9
    assert at(name, base, base) == Coherence(name, 1.0)
    assert at(name, base, edge).margin == pytest.approx(0.0, abs=1e-9)
    assert at(name, base, past).margin < 0


@pytest.mark.parametrize(("name", "base"), CASES)
def test_the_margin_falls_all_the_way_from_base_to_the_limit_and_rises_on_the_good_side(name: str, base: float):
    edge = limit(name, base)
    margins = [at(name, base, base + share * (edge - base)).margin for share in (-0.1, 0.0, 0.2, 0.5, 0.9, 1.0, 1.5)]
    assert margins == sorted(margins, reverse=True)
    assert len(set(margins)) == len(margins)


def test_distances_of_a_perplexity_are_ratios():
    assert at("tail_perplexity", 2.5, 5.0).margin == pytest.approx(0.5)  # halfway from 2.5 to 10, by factors
    assert at("scaffold_nats", 2.0, 2.25).margin == pytest.approx(0.5)


def test_coherence_is_the_signal_with_the_least_margin():
    values = GOOD | {"tail_perplexity": around(9.0), "p_ans_any": around(0.95)}
    deltas = SHIFT | {"tail_perplexity": around(5.0), "p_ans_any": around(-0.03)}
    found = coherence(values, deltas, FLOORS, VALID)
    assert found.worst == "tail_perplexity"
    assert found.margin == min(coherence(values, deltas, FLOORS, {name}).margin for name in LIMITED)


@pytest.mark.parametrize("signal", LIMITED)
def test_coherence_is_negative_exactly_where_a_signal_is_past_its_limit(signal: str):
    assert coherence(GOOD, SHIFT, FLOORS, VALID).margin > 0
    values, deltas = broken(signal)
    found = coherence(GOOD | values, SHIFT | deltas, FLOORS, VALID)
    assert found.worst == signal
    assert found.margin < 0


@pytest.mark.parametrize("signal", LIMITED)
def test_coherence_never_looks_at_an_invalid_signal(signal: str):
    values, deltas = broken(signal)
    known = VALID - {signal}
    assert coherence(GOOD | values, SHIFT | deltas, FLOORS, known) == coherence(GOOD, SHIFT, FLOORS, known)


@pytest.mark.parametrize("signal", LIMITED)
def test_a_signal_that_is_not_finite_is_the_worst(signal: str):
    values = GOOD | {signal: Estimate(NAN, NAN, NAN, 0)}
    assert coherence(values, SHIFT, FLOORS, VALID).worst == signal


def test_a_base_that_stands_at_its_limit_is_whole_there_and_broken_past_it():
    assert at("repetition_share", 0.25, 0.25).margin == 1.0
    assert at("repetition_share", 0.25, 0.125).margin == 1.0
    assert at("repetition_share", 0.25, 0.3).margin == -1.0


def test_without_a_valid_signal_there_is_no_coherence():
    with pytest.raises(ValueError, match="no signal of coherence is valid"):
        coherence(GOOD, SHIFT, FLOORS, {"persona_log_ratio", "accuracy"})


def test_a_verdict_that_holds_says_which_signal_is_nearest_to_its_limit():
    found = coherence(GOOD, SHIFT, FLOORS, VALID)
    assert f"coherence margin {found.margin:.2f} ({found.worst})" in judged().reason


def test_the_cost_of_coherence_is_the_ratio_with_both_signs_beside_it():
    assert coh_cost(around(-0.06), around(0.12)) == {
        "ratio": pytest.approx(0.5),
        "d_coherence": -0.06,
        "d_trait": 0.12,
    }
    assert coh_cost(around(-0.06), around(-0.12))["ratio"] == pytest.approx(0.5)


@pytest.mark.parametrize("trait", [around(0.01), around(0.0), around(-0.01), Estimate(NAN, NAN, NAN, 0)])
def test_without_a_trait_shift_there_is_no_cost(trait: Estimate):
    assert coh_cost(around(-0.06), trait) is None


def test_a_signal_without_a_limit_is_never_the_worst():
    open_ended = replace(FLOORS, max_tail_perplexity=math.inf)
    worse = GOOD | {"tail_perplexity": around(50.0)}
    found = coherence(worse, SHIFT | {"tail_perplexity": around(46.0)}, open_ended, set(GOOD))
    assert found.worst != "tail_perplexity"
    assert math.isfinite(found.margin)


def test_a_fall_from_a_base_that_stands_on_its_limit_is_broken_and_finite():
    found = coherence(GOOD | {"p_ans_any": around(0.80)}, SHIFT | {"p_ans_any": around(-0.05)}, FLOORS, set(GOOD))
    assert found.worst == "p_ans_any"
    assert found.margin == -1.0
