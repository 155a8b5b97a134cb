"""What a readout is worth on a model, judged on base: the rule of each signal, and the numbers it rests on."""

import json
import math
from dataclasses import asdict, replace

import pytest

from heal.evaluation.stats import Estimate
from heal.evaluation.validity import MIN_MASS, TRAIT, Validity, doubts, from_json, valid_names, validity
from heal.evaluation.verdict import LIMITED, Floors
from heal.evaluation.vignettes import FOUNDATIONS

FLOORS = Floors(
    min_p_ans_any=0.85,
    max_repetition_share=0.25,
    max_tail_perplexity=10.0,
    min_alive_share=0.75,
    max_scaffold_rise=0.5,
)
NAN = float("nan")
WARM, COLD = [0.4, 0.5, 0.6, 0.5], [-0.4, -0.3, -0.5, -0.4]


def around(value: float, width: float = 0.02) -> Estimate:
    return Estimate(value, value - width, value + width, 16)


BASE = {
    TRAIT: around(0.1),
    "p_ans_any": around(0.98),
    "unscorable_share": around(0.0),
    "accuracy": around(0.6),
    "question_informedness": around(0.4),
    "alive_share": around(1.0),
    "probe_mass": around(0.97),
    "scaffold_nats": around(2.0),
    "repetition_share": around(0.0),
    "tail_perplexity": around(4.0),
    "neutral_kl_p95": around(0.0),
    "answer_tokens": around(30.0),
    "ended_share": around(0.5),
    "refusal_share": around(0.1),
    "clr_care": around(0.3),
    "care_nats": around(-1.2),
    "vignette_mass": around(0.95),
    "vignette_informedness": around(0.2),
    "wrongness": around(0.5),
    "wrongness_mass": around(0.95),
    "wrongness_informedness": around(0.3),
}
# The signals of each forced choice, its mass, and what it must tell apart, if anything.
CHOICES = [
    (("p_ans_any", "unscorable_share"), "p_ans_any", None),
    (("accuracy", "question_informedness"), "p_ans_any", "question_informedness"),
    (("alive_share", "probe_mass", "scaffold_nats"), "probe_mass", None),
    (("clr_care", "care_nats", "vignette_mass", "vignette_informedness"), "vignette_mass", "vignette_informedness"),
    (("wrongness", "wrongness_mass", "wrongness_informedness"), "wrongness_mass", "wrongness_informedness"),
]
COUNTED = ("neutral_kl_p95", "answer_tokens", "ended_share", "refusal_share")
CASES = [(name, mass, informed) for names, mass, informed in CHOICES for name in names]
INFORMED = [case for case in CASES if case[2]]


def judged(
    prompted: list[float] = WARM, opposite: list[float] = COLD, floors: Floors = FLOORS, **changes: Estimate
) -> dict[str, Validity]:
    return validity(BASE | changes, prompted, opposite, floors, 500, 0)


def test_on_a_good_model_everything_is_valid():
    found = judged()
    assert found.keys() == BASE.keys()
    assert valid_names(found) == set(BASE)


# Forced choices.


@pytest.mark.parametrize(("name", "mass", "informed"), CASES)
def test_a_forced_choice_without_mass_is_invalid_even_when_it_is_informed(name: str, mass: str, informed: str | None):
    changes = {mass: around(MIN_MASS - 0.01)} | ({informed: around(1.0, 0.0)} if informed else {})
    assert not judged(**changes)[name].valid


@pytest.mark.parametrize(("name", "mass", "informed"), CASES)
def test_a_forced_choice_with_just_the_mass_that_is_needed_is_valid(name: str, mass: str, informed: str | None):
    assert judged(**{mass: around(MIN_MASS)})[name].valid


@pytest.mark.parametrize(("name", "mass", "informed"), INFORMED)
@pytest.mark.parametrize("known", [around(0.0), around(0.01), around(-0.5), Estimate(0.1, 0.0, 0.2, 16)])
def test_a_forced_choice_no_better_than_chance_is_invalid_even_with_all_the_mass(
    name: str, mass: str, informed: str, known: Estimate
):
    assert not judged(**{mass: around(1.0, 0.0), informed: known})[name].valid


@pytest.mark.parametrize(("name", "mass", "informed"), INFORMED)
def test_a_forced_choice_whose_right_answers_are_all_alike_is_invalid(name: str, mass: str, informed: str):
    found = judged(**{informed: Estimate(NAN, NAN, NAN, 0)})[name]
    assert not found.valid
    assert "right answers of two kinds" in found.why


@pytest.mark.parametrize(("name", "mass", "informed"), [case for case in CASES if not case[2]])
def test_a_forced_choice_without_a_right_answer_asks_for_no_informedness(name: str, mass: str, informed: None):
    ignorant = {known: around(-0.5) for _, _, known in INFORMED if known}
    assert judged(**ignorant)[name].valid


@pytest.mark.parametrize(("names", "mass", "informed"), CHOICES)
def test_a_forced_choice_that_fails_takes_no_other_signal_with_it(
    names: tuple[str, ...], mass: str, informed: str | None
):
    lost = {name for members, its_mass, _ in CHOICES for name in members if its_mass == mass}
    assert valid_names(judged(**{mass: around(0.3)})) == BASE.keys() - lost
    if informed:
        assert valid_names(judged(**{informed: around(0.0)})) == BASE.keys() - set(names)


@pytest.mark.parametrize("foundation", FOUNDATIONS)
def test_every_foundation_stands_or_falls_with_the_scenes(foundation: str):
    names = {f"clr_{foundation}": around(0.0), f"{foundation}_nats": around(-2.0)}
    assert names.keys() <= valid_names(judged(**names))
    assert not names.keys() & valid_names(judged(**names, vignette_informedness=around(0.0)))


@pytest.mark.parametrize("mass", ["p_ans_any", "probe_mass", "vignette_mass", "wrongness_mass"])
def test_a_mass_that_is_not_a_number_is_no_mass(mass: str):
    assert mass not in valid_names(judged(**{mass: Estimate(NAN, NAN, NAN, 0)}))


# Coherence.

LIMITS = {"repetition_share": FLOORS.max_repetition_share, "tail_perplexity": FLOORS.max_tail_perplexity}


@pytest.mark.parametrize("name", LIMITS)
def test_a_signal_of_coherence_is_valid_exactly_where_base_is_within_its_limit(name: str):
    for share in (0.0, 0.5, 1.0):
        assert judged(**{name: around(share * LIMITS[name])})[name].valid
    for value in (1.01 * LIMITS[name], math.inf, NAN):
        assert not judged(**{name: around(value)})[name].valid


def test_a_forced_choice_with_all_the_mass_is_not_valid_where_base_itself_is_past_its_limit():
    assert not judged(alive_share=around(0.5))["alive_share"].valid
    assert not judged(floors=replace(FLOORS, min_p_ans_any=0.99), p_ans_any=around(0.95))["p_ans_any"].valid


@pytest.mark.parametrize("name", LIMITS)
def test_the_limits_are_the_recipe_s(name: str):
    changed = {"repetition_share": {"max_repetition_share": 0.6}, "tail_perplexity": {"max_tail_perplexity": 30.0}}
    beyond = around(1.5 * LIMITS[name])
    assert not judged(**{name: beyond})[name].valid
    assert judged(floors=replace(FLOORS, **changed[name]), **{name: beyond})[name].valid


def test_every_signal_with_a_limit_is_judged():
    poor = {"p_ans_any": 0.2, "probe_mass": 0.2, "repetition_share": 0.9, "tail_perplexity": 99.0}
    assert not valid_names(judged(**{name: around(value) for name, value in poor.items()})) & LIMITED.keys()


# The trait.


def test_the_persona_log_ratio_is_valid_where_the_positive_persona_beats_the_negative_one():
    assert judged()[TRAIT].valid


@pytest.mark.parametrize(
    ("prompted", "opposite"),
    [
        (COLD, WARM),
        (WARM, WARM),
        ([0.5, -0.5, 0.4, -0.4], [0.4, -0.4, 0.5, -0.5]),
        ([NAN] * 4, COLD),
        ([], []),
    ],
    ids=["the wrong way round", "equal", "no more than noise", "never measured", "no answers"],
)
def test_personas_that_the_persona_log_ratio_cannot_tell_apart_make_it_invalid(
    prompted: list[float], opposite: list[float]
):
    assert not judged(prompted, opposite)[TRAIT].valid


def test_the_personas_are_compared_answer_by_answer():
    """Answers that differ a lot among themselves hide nothing: only each one's difference counts."""
    scattered = [-3.0, -1.0, 1.0, 3.0]
    assert judged([value + 0.1 for value in scattered], scattered)[TRAIT].valid
    assert not judged([value + 0.1 for value in scattered], scattered[::-1])[TRAIT].valid


def test_base_s_own_persona_log_ratio_decides_nothing():
    for value in (-5.0, 0.0, NAN):
        assert judged(**{TRAIT: around(value)})[TRAIT] == judged()[TRAIT]


# What is counted.


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("value", [-1e9, 0.0, 1e9, NAN])
def test_what_is_counted_is_always_valid(name: str, value: float):
    nothing_else = {each: around(-1.0) for each in BASE if each not in COUNTED}
    assert judged(COLD, WARM, **(nothing_else | {name: around(value)}))[name].valid


# Reasons.


def test_reasons_carry_the_numbers_they_rest_on():
    found = judged(
        probe_mass=around(0.41),
        question_informedness=Estimate(0.125, -0.03, 0.28, 24),
        tail_perplexity=around(31.4),
        repetition_share=around(0.5),
    )
    assert "0.410" in found["alive_share"].why
    assert "0.9 needed" in found["alive_share"].why
    assert "0.980" in found["accuracy"].why
    assert "+0.125 [-0.030, +0.280] (n = 24)" in found["accuracy"].why
    assert "base 31.4, ceiling 10" in found["tail_perplexity"].why
    assert "base 0.5, ceiling 0.25" in found["repetition_share"].why


def test_the_trait_s_reason_has_the_difference_of_the_personas_with_its_interval_and_n():
    assert judged([1.0] * 4, [0.25] * 4)[TRAIT].why.endswith("+0.750 [+0.750, +0.750] (n = 4)")
    assert judged([1.0, NAN, 1.0, 1.0], [0.25] * 4)[TRAIT].why.endswith("(n = 3)")


def test_judgements_come_back_from_json_as_they_went():
    found = judged(COLD, WARM, probe_mass=around(0.41))
    written = json.dumps({name: asdict(entry) for name, entry in found.items()})
    assert from_json(json.loads(written)) == found


def test_doubts_name_every_signal_that_is_not_valid_once_with_its_reason():
    found = judged(probe_mass=around(0.41), tail_perplexity=around(31.4))
    texts = doubts(found)
    assert len(texts) == 2  # one a reason: those of the probe share theirs
    for name in ("alive_share", "probe_mass", "scaffold_nats", "tail_perplexity"):
        (text,) = [text for text in texts if name in text]
        assert found[name].why in text
    assert doubts(judged()) == []
