"""Damage to a real model's answers is seen by the signal that is there for it. One promise a damage, sizes measured.

On the embedded model, six answers of 48 tokens to held-out prompts: base's median tail perplexity is 2.35; with half of
each answer spoilt it is 340 to 1060 for word salad and 63 to 99 for another language, by seed; under noise of half a
standard deviation in the weights it is 6,400 and more. Of the first halves of four of the answers three are recognised
as answers to their own prompts, with 0.05 nats per token (0.06 is all that they could say); exchanged, none is, with
-0.83.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from heal.config import EvaluationConfig, FilterConfig, ModelConfig
from heal.evaluation.readouts import free_answers, likelihood
from heal.evaluation.results import Answer
from heal.evaluation.signal import limits_of
from heal.evaluation.stats import point
from heal.evaluation.subject import Setup, Subject
from heal.models.load import load_language_model
from heal.studies.planted_damage.damage import Kind, damaged, noisy_weights
from heal.trait import load_trait
from tests.cases import case

CEILING = limits_of(EvaluationConfig())["tail_perplexity"]
COUNT, TOKENS = 6, 48


@pytest.fixture(scope="module")
def base() -> Subject:
    """The embedded model as it is."""
    settings, trait = ModelConfig(), load_trait("love")
    setup = Setup(
        language_model=load_language_model(settings, torch.float32, torch.device("cpu")),
        trait=trait,
        base=nullcontext,
        system=settings.system,
        prompts=trait.heldout_prompts[:COUNT],
        tokens=TOKENS,
        max_repetition=FilterConfig().max_repetition,
        questions=2,
    )
    return Subject(setup, "base", nullcontext)


@pytest.fixture(scope="module")
def answers(base: Subject) -> list[Answer]:
    """What it says to the first held-out prompts."""
    return base.answer()


def measured(base: Subject, said: Sequence[Answer]) -> dict[str, float]:
    """Each signal of what was said, as a table would show it."""
    found = [*free_answers.measure(base, said), *likelihood.measure(base, said)]
    return {signal.name: point(signal.values, signal.statistic) for signal in found}


@pytest.fixture(scope="module")
def whole(base: Subject, answers: list[Answer]) -> dict[str, float]:
    return measured(base, answers)


def spoilt(base: Subject, answers: list[Answer], kind: Kind, size: float = 0.5) -> dict[str, float]:
    return measured(base, damaged(base.setup.language_model, answers, kind, size, 0))


def test_the_answers_themselves_are_within_every_limit(whole: dict[str, float]):
    assert whole["tail_perplexity"] < CEILING / 2
    assert whole["repetition_share"] == 0.0


def test_loops_over_half_of_every_answer_are_all_seen_as_loops_which_perplexity_alone_would_praise(
    base: Subject, answers: list[Answer], whole: dict[str, float]
):
    for kind in ("token loop", "long loop"):
        with case(kind):
            looping = spoilt(base, answers, kind)
            assert looping["repetition_share"] == 1.0
            assert looping["tail_perplexity"] < whole["tail_perplexity"]


def test_word_salad_in_half_of_every_answer_multiplies_the_tail_perplexity(
    base: Subject, answers: list[Answer], whole: dict[str, float]
):
    found = spoilt(base, answers, "word salad")["tail_perplexity"]
    assert found > 3 * whole["tail_perplexity"]
    assert found > CEILING


def test_another_language_in_half_of_every_answer_takes_the_tail_perplexity_past_its_limit(
    base: Subject, answers: list[Answer]
):
    assert spoilt(base, answers, "wrong language")["tail_perplexity"] > CEILING


def test_answers_cut_in_half_are_shorter_and_nothing_worse(
    base: Subject, answers: list[Answer], whole: dict[str, float]
):
    found = spoilt(base, answers, "cut off")
    assert found["answer_tokens"] == pytest.approx(whole["answer_tokens"] / 2, abs=0.5)
    assert found["tail_perplexity"] < CEILING
    assert found["repetition_share"] == 0.0


def test_fluent_answers_to_other_prompts_are_seen_by_relevance_alone(base: Subject, answers: list[Answer]):
    own = [replace(answer, ids=answer.ids[: TOKENS // 2]) for answer in answers[:4]]
    _, identified, per_token = (point(signal.values, "mean") for signal in likelihood.measure(base, own))
    assert identified > 0.5
    assert per_token > 0
    kinds: tuple[Kind, ...] = ("exchanged", "one answer")
    for kind in kinds:
        others = damaged(base.setup.language_model, own, kind, 1.0, 0)
        _, identified, per_token = (point(signal.values, "mean") for signal in likelihood.measure(base, others))
        assert identified < 0.3, kind
        assert per_token < 0, kind
        found = measured(base, others)
        assert found["tail_perplexity"] < CEILING, kind
        assert found["repetition_share"] == 0.0, kind


def test_noise_of_half_a_standard_deviation_in_the_weights_takes_the_tail_perplexity_past_its_limit(base: Subject):
    with noisy_weights(base.setup.language_model, 0.5, 0):
        said = replace(base, setup=replace(base.setup, tokens=TOKENS // 2)).answer()
    assert measured(base, said)["tail_perplexity"] > CEILING
