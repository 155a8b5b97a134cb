"""The verdict: its order, its floors, and what it never calls a win."""

import math
from dataclasses import replace

import pytest

from heal.evaluation.stats import Estimate
from heal.evaluation.verdict import Floors, Verdict, coh_cost, incoherences, verdict

FLOORS = Floors(min_p_ans_any=0.85, max_repetition_share=0.25, max_tail_perplexity=10.0)
NAN = float("nan")


def around(value: float, width: float = 0.02) -> Estimate:
    return Estimate(value, value - width, value + width, 16)


GOOD = {
    "persona_log_ratio": around(0.20),
    "p_ans_any": around(0.98),
    "repetition_share": around(0.0),
    "tail_perplexity": around(4.0),
    "accuracy": around(0.6),
}
SHIFT = {
    "persona_log_ratio": around(0.15),
    "p_ans_any": around(0.0),
    "repetition_share": around(0.0),
    "tail_perplexity": around(0.3, 0.5),
    "accuracy": around(0.0),
}
BREAKS = {
    "p_ans_any": {"p_ans_any": around(0.80)},
    "repetition_share": {"repetition_share": around(0.30)},
    "tail_perplexity": {"tail_perplexity": around(12.0)},
}


def judged(values: dict[str, Estimate] | None = None, deltas: dict[str, Estimate] | None = None, **more) -> Verdict:
    return verdict(GOOD | (values or {}), SHIFT | (deltas or {}), FLOORS, **more)


def test_a_coherent_shift_holds_and_shows_its_numbers():
    found = judged()
    assert found.holds
    assert "+0.150 [+0.130, +0.170]" in found.reason
    assert "n = 16" in found.reason


@pytest.mark.parametrize("signal", BREAKS)
def test_each_coherence_signal_past_its_floor_is_incoherent_and_named(signal: str):
    found = judged(BREAKS[signal])
    assert found.label == "incoherent"
    words = {"p_ans_any": "p_ans_any 0.80", "repetition_share": "looping answers 30%", "tail_perplexity": "12.0"}
    assert words[signal] in found.reason


def test_accuracy_whose_whole_interval_fell_is_incoherent():
    assert judged(deltas={"accuracy": around(-0.1)}).label == "incoherent"


def test_accuracy_whose_interval_reaches_zero_is_no_fall():
    assert judged(deltas={"accuracy": around(-0.1, 0.1)}).holds


def test_every_broken_signal_is_named():
    values = GOOD | BREAKS["p_ans_any"] | BREAKS["repetition_share"] | BREAKS["tail_perplexity"]
    assert len(incoherences(values, SHIFT | {"accuracy": around(-0.1)}, FLOORS)) == 4
    assert incoherences(GOOD, SHIFT, FLOORS) == []


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("signal", GOOD)
def test_a_number_that_is_not_finite_fails_whatever_the_signal(signal: str, value: float):
    found = judged({signal: Estimate(value, value, value, 0)})
    assert found == Verdict("not finite", f"not finite: {signal}")


def test_not_finite_is_said_before_incoherent():
    assert judged({"accuracy": Estimate(NAN, NAN, NAN, 0), **BREAKS["p_ans_any"]}).label == "not finite"


def test_incoherent_is_said_before_no_shift():
    assert judged(BREAKS["tail_perplexity"], {"persona_log_ratio": around(0.0)}).label == "incoherent"


def test_no_shift_is_said_before_off_target():
    deltas = {"persona_log_ratio": around(0.0), "other": around(1.0)}
    assert judged({"other": around(1.0)}, deltas, off_target=("other",)).label == "no trait shift"


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
    found = judged({"other": around(1.0)}, {"other": around(moved)}, off_target=("other",))
    assert found.label == label
    assert ("other moved as much" in found.reason) == (label == "off-target")


def test_another_trait_signal_may_be_judged():
    deltas = {"care_nats": around(-0.3), "persona_log_ratio": around(0.2)}
    assert judged({"care_nats": around(-1.0)}, deltas, trait="care_nats").label == "no trait shift"


def test_a_value_just_at_a_floor_is_coherent():
    exact = {
        "p_ans_any": around(FLOORS.min_p_ans_any),
        "repetition_share": around(FLOORS.max_repetition_share),
        "tail_perplexity": around(FLOORS.max_tail_perplexity),
    }
    assert judged(exact).holds


def test_the_floors_are_the_caller_s():
    assert verdict(GOOD, SHIFT, replace(FLOORS, min_p_ans_any=0.99)).label == "incoherent"


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
