"""What a readout is worth on a model, judged on base: the rule of each signal, and the numbers it rests on."""

import json
import math
from dataclasses import asdict

from heal.config import EvaluationConfig
from heal.evaluation.asking.way import Asking, Tried
from heal.evaluation.results import StageResult, summarise
from heal.evaluation.signal import (
    MIN_MASS,
    TRAIT,
    Evidence,
    ForcedChoiceRule,
    Validity,
    limited,
    limits_of,
    signals,
)
from heal.evaluation.stats import Estimate
from heal.evaluation.validity import doubts, valid_names, validity
from heal.evaluation.vignettes import FOUNDATIONS
from heal.records import as_record
from tests.stages import around, healthy, on_the_way, summary

SET = limits_of(EvaluationConfig()) | {"scaffold_nats": 0.5}
NAN = float("nan")
WARM, COLD = [0.4, 0.5, 0.6, 0.5], [-0.4, -0.3, -0.5, -0.4]

BASE = {name: around(healthy(name, SET)) for name in limited()} | {
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
    "identified_share": around(0.9),
    "relevance": around(0.3),
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
# The signals of each forced choice, its mass, what it must tell apart, if anything, and its name, if ways are tried.
CHOICES = [
    (("p_ans_any", "unscorable_share"), "p_ans_any", None, None),
    (("accuracy", "question_informedness"), "p_ans_any", "question_informedness", "general questions"),
    (("alive_share", "probe_mass", "scaffold_nats"), "probe_mass", None, None),
    (
        ("clr_care", "care_nats", "vignette_mass", "vignette_informedness"),
        "vignette_mass",
        "vignette_informedness",
        "moral foundations",
    ),
    (
        ("wrongness", "wrongness_mass", "wrongness_informedness"),
        "wrongness_mass",
        "wrongness_informedness",
        "wrongness",
    ),
]
COUNTED = ("neutral_kl_p95", "answer_tokens", "ended_share", "refusal_share")
CASES = [(name, mass, informed) for names, mass, informed, _ in CHOICES for name in names]
INFORMED = [(name, informed) for name, _, informed in CASES if informed]


def personas(prompted: list[float], opposite: list[float]):
    up, down = (
        StageResult(stage, (), (signals()[TRAIT].measured(values),))
        for stage, values in (("prompted", prompted), ("opposite", opposite))
    )
    return summarise(up, down, 500, 0)


def judged(
    prompted: list[float] = WARM,
    opposite: list[float] = COLD,
    limits: dict[str, float] = SET,
    asking: dict[str, Asking] | None = None,
    **changes: Estimate,
) -> dict[str, Validity]:
    return validity(Evidence(summary(BASE | changes, {}), personas(prompted, opposite), asking or {}), limits)


def test_on_a_good_model_everything_is_valid():
    assert judged().keys() == BASE.keys()
    assert valid_names(judged()) == set(BASE)


# Forced choices.


def test_a_forced_choice_requires_the_mass_even_when_it_is_informed():
    for name, mass, informed in CASES:
        known = {informed: around(1.0, 0.0)} if informed else {}
        assert not judged(**{mass: around(MIN_MASS - 0.01)}, **known)[name].valid, name
        assert judged(**{mass: around(MIN_MASS)})[name].valid, name
        assert not judged(**{mass: Estimate(NAN, NAN, NAN, 0)})[name].valid, name

    without = {name: value for name, value in BASE.items() if name != "probe_mass"}
    found = validity(Evidence(summary(without, {}), personas(WARM, COLD)), SET)
    assert not found["alive_share"].valid
    assert "probe_mass was not measured" in found["alive_share"].why


def test_a_forced_choice_with_right_answers_must_be_better_than_chance_even_with_all_the_mass():
    for name, informed in INFORMED:
        for known in (around(0.0), around(0.01), around(-0.5), Estimate(0.1, 0.0, 0.2, 16)):
            assert not judged(**{informed: known})[name].valid, (name, known)
        alike = judged(**{informed: Estimate(NAN, NAN, NAN, 0)})[name]
        assert not alike.valid
        assert "right answers of two kinds" in alike.why

    ignorant = judged(**{informed: around(-0.5) for _, informed in INFORMED})
    assert all(ignorant[name].valid for name, _, informed in CASES if informed is None)


def test_a_forced_choice_that_fails_takes_its_own_signals_with_it_and_no_other():
    rules = {name: signals()[name].validity for name in BASE}
    by_mass, by_both = (
        {name: names(rule) for name, rule in rules.items() if isinstance(rule, ForcedChoiceRule)}
        for names in (lambda rule: rule.mass, lambda rule: (rule.mass, rule.informedness))
    )
    for names, mass, informed, _ in CHOICES:
        lost = {name for name, its in by_mass.items() if its == mass}
        assert set(names) <= lost
        assert valid_names(judged(**{mass: around(0.3)})) == BASE.keys() - lost
        if informed:
            lost = {name for name, its in by_both.items() if its == (mass, informed)}
            assert set(names) <= lost
            assert valid_names(judged(**{informed: around(0.0)})) == BASE.keys() - lost

    names = {name: around(0.0) for each in FOUNDATIONS for name in (f"clr_{each}", f"{each}_nats")}
    assert names.keys() <= valid_names(judged(**names))
    assert not names.keys() & valid_names(judged(**names, vignette_informedness=around(0.0)))


def asked(valid: bool, why: str = "because") -> Asking:
    """A way that was chosen, and what was found by it."""
    return Asking(
        "words", (), "words, centred", {"words, centred": Tried(around(0.5), (0.4, 0.6), None, 0.7, valid, why)}
    )


def test_what_was_found_when_the_way_was_chosen_decides_over_what_base_did_on_the_items_of_the_evaluation():
    for names, mass, informed, choice in CHOICES:
        if choice is None:
            continue
        poor = {mass: around(0.95), informed: around(0.0)}
        for valid, changes in ((True, poor), (False, {})):
            found = judged(asking={choice: asked(valid)}, **changes)
            assert [found[name].valid for name in names] == [valid] * len(names)
            assert all("asked by words, centred: because" in found[name].why for name in names)
            assert {name: found[name] for name in BASE if name not in names} == {
                name: judgement for name, judgement in judged(**changes).items() if name not in names
            }
        untried = {choice: Asking("words")}
        assert judged(asking=untried, **poor) == judged(**poor)


# Answers that are recognised.


def test_relevance_is_valid_where_base_s_own_answers_are_recognised_at_more_than_twice_chance():
    """Chance is one in as many prompts as there are answers, and at most 6."""
    rest_on_it = {name for name in BASE if "identified_share" in getattr(signals()[name].validity, "signals", ())}
    assert rest_on_it >= {"identified_share", "relevance"}
    for n, chance in ((16, 1 / 6), (6, 1 / 6), (5, 1 / 5), (3, 1 / 3)):
        for low, valid in ((2 * chance + 0.01, True), (2 * chance, False), (chance, False), (NAN, False)):
            known = Estimate(2 * chance + 0.1, low, 1.0, n)
            found = judged(identified_share=known)
            assert valid_names(found) == BASE.keys() - (set() if valid else rest_on_it), (n, low)
            assert f"among {min(n, 6)} prompts" in found["relevance"].why
    assert not judged(identified_share=Estimate(NAN, NAN, NAN, 0))["relevance"].valid
    without = {name: value for name, value in BASE.items() if name != "identified_share"}
    found = validity(Evidence(summary(without, {}), {}), SET)["relevance"]
    assert (found.valid, found.why) == (False, "identified_share was not measured on base")


# Coherence.


def test_a_signal_with_a_limit_is_valid_exactly_where_base_is_within_it():
    for name in ("repetition_share", "tail_perplexity"):
        for share in (0.0, 0.5, 1.0):
            assert judged(**{name: around(share * SET[name])})[name].valid, (name, share)
        for value in (1.01 * SET[name], math.inf, NAN):
            assert not judged(**{name: around(value)})[name].valid, (name, value)
        beyond = {name: around(1.5 * SET[name])}
        assert not judged(**beyond)[name].valid
        assert judged(limits=SET | {name: 2 * SET[name]}, **beyond)[name].valid

    assert not judged(alive_share=around(0.5))["alive_share"].valid
    assert not judged(limits=SET | {"p_ans_any": 0.99}, p_ans_any=around(0.95))["p_ans_any"].valid

    for name, limit in limited().items():
        rule = signals()[name].validity
        rests_on = () if rule is None else rule.signals
        if limit.over_base and not rests_on:
            continue  # base is never past it
        past = {} if limit.over_base else {name: around(on_the_way(name, SET, healthy(name, SET), 1.5))}
        poor = {other: around(0.0) for other in rests_on}
        assert name not in valid_names(judged(**(past | poor))), name
        assert not past or name not in valid_names(judged(**past)), name


# The trait.


def test_the_persona_log_ratio_is_valid_where_the_positive_persona_beats_the_negative_one_answer_by_answer():
    assert judged()[TRAIT].valid
    for why, prompted, opposite in (
        ("the wrong way round", COLD, WARM),
        ("equal", WARM, WARM),
        ("no more than noise", [0.5, -0.5, 0.4, -0.4], [0.4, -0.4, 0.5, -0.5]),
        ("never measured", [NAN] * 4, COLD),
        ("no answers", [], []),
    ):
        assert not judged(prompted, opposite)[TRAIT].valid, why
    assert not validity(Evidence(summary(BASE, {}), {}), SET)[TRAIT].valid

    # Answers that differ a lot among themselves hide nothing: only each one's difference counts.
    scattered = [-3.0, -1.0, 1.0, 3.0]
    assert judged([value + 0.1 for value in scattered], scattered)[TRAIT].valid
    assert not judged([value + 0.1 for value in scattered], scattered[::-1])[TRAIT].valid


def test_how_far_base_takes_on_the_persona_is_said_in_words_beside_the_number():
    for apart, words in (
        (0.9, "base clearly takes on the persona: positive over negative +0.900"),
        (0.3, "base clearly takes on the persona: positive over negative +0.300"),
        (0.25, "base takes on a little of the persona: positive over negative +0.250"),
        (0.1, "base takes on a little of the persona: positive over negative +0.100"),
        (0.05, "base hardly takes on the persona: positive over negative +0.050"),
        (-0.5, "base hardly takes on the persona: positive over negative -0.500"),
    ):
        found = judged([apart] * 4, [0.0] * 4)[TRAIT]
        assert words in found.why
        assert found.why.endswith("against 0.3 where a model clearly does")
        assert found.valid == (apart > 0)  # however little
    assert "takes on" not in judged([NAN] * 4, COLD)[TRAIT].why
    assert "no answer could be scored" in judged([NAN] * 4, COLD)[TRAIT].why


# What is counted.


def test_what_is_counted_or_described_no_more_is_always_valid_and_base_s_own_trait_decides_nothing():
    nothing_else = {name: around(-1.0) for name in BASE if name not in COUNTED}
    for name in COUNTED:
        for value in (-1e9, 0.0, 1e9, NAN):
            assert judged(COLD, WARM, **(nothing_else | {name: around(value)}))[name].valid, (name, value)

    assert judged(**{"measured by an earlier version": around(1.0)})["measured by an earlier version"].valid

    for value in (-5.0, 0.0, NAN):
        assert judged(**{TRAIT: around(value)})[TRAIT] == judged()[TRAIT]


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
    assert "+0.750 [+0.750, +0.750] nats/token (n = 4)" in judged([1.0] * 4, [0.25] * 4)[TRAIT].why
    assert "(n = 3)" in judged([1.0, NAN, 1.0, 1.0], [0.25] * 4)[TRAIT].why
    known = judged(identified_share=Estimate(0.25, 0.125, 0.5, 8))["relevance"].why
    assert "0.25 [0.12, 0.50] of the time among 6 prompts, more than 0.33 needed" in known


def test_judgements_come_back_from_json_as_they_went():
    found = judged(COLD, WARM, probe_mass=around(0.41))
    written = json.loads(json.dumps({name: asdict(entry) for name, entry in found.items()}))
    assert as_record(dict[str, Validity], written, "here") == found


def test_doubts_name_every_signal_that_is_not_valid_once_with_its_reason():
    found = judged(probe_mass=around(0.41), tail_perplexity=around(31.4))
    texts = doubts(found)
    assert len(texts) == 2  # one a reason: those of the probe share theirs
    for name in ("alive_share", "probe_mass", "scaffold_nats", "tail_perplexity"):
        (text,) = [text for text in texts if name in text]
        assert found[name].why in text
    assert doubts(judged()) == []
