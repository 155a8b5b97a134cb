"""Relevance against a plain dense computation: what a text says about its prompt, and the readout of it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch

from heal.accumulator import Accumulator
from heal.evaluation.readouts import likelihood as readout
from heal.evaluation.readouts.likelihood import IDENTIFIED, RELEVANCE
from heal.evaluation.results import Answer
from heal.evaluation.signal import Evidence
from heal.evaluation.stats import Estimate
from heal.evaluation.subject import Subject
from heal.generation import relevance as of_texts
from heal.generation.relevance import Relevance, _relevance, beginning, read_texts
from heal.generation.rivals import RIVALS, rivals
from heal.models.language_model import LanguageModel
from heal.recipe_files import RECIPES, available
from heal.trait import load_trait
from tests.cases import case
from tests.plain import ASKED, NATS, about_prompt, about_prompts, greedy, rendered, texts
from tests.stages import NEUTRAL, setup, summary
from tests.students import student
from tests.tiny import forgetful, prompts, sized, vector

Model = tuple[LanguageModel, Accumulator]


@pytest.fixture(scope="module")
def healed(tiny_folder: Path) -> Model:
    """A tiny student with one folded round; leave it as it is."""
    return student(tiny_folder, rounds=1)


def relevances(*given) -> list[Relevance | None]:
    return [reading.relevance for reading in read_texts(*given)]


def nats(found: Sequence[Relevance | None]) -> list[float]:
    return [math.nan if one is None else one.nats for one in found]


# Values.


def test_relevance_is_that_of_a_plain_dense_pass_for_each_prompt(architectures: dict[str, LanguageModel]):
    own = [3, 0, 1, 1, 4, 2, 0]
    against = [[1, 2, 3, 4], [0, 4], [3], [4, 0], [0, 1, 2, 3]]
    for name, model in architectures.items():
        asked, said = prompts(model), texts(7)
        expected = [
            about_prompt(model, text, asked[mine], [asked[other] for other in against[mine]])
            for text, mine in zip(said, own, strict=True)
        ]
        for passes in (model, sized(model, 1), sized(model, 150)):
            found = relevances(passes, asked, said, own, against)
            for one, text, mine, (value, identified) in zip(found, said, own, expected, strict=True):
                with case(name, text):
                    assert one is not None
                    assert one.nats == pytest.approx(value, abs=NATS)
                    assert (one.tokens, one.rivals) == (min(60, len(text)), len(against[mine]))
                    assert abs(value) < NATS or one.identified == identified
                    assert one.per_token == one.nats / one.tokens
                    assert one.share == one.nats / math.log(1 + one.rivals)


def test_only_the_first_sixty_tokens_of_a_text_count(tiny: LanguageModel):
    asked = prompts(tiny, 3)
    beginning, one, other = (tuple(range(first, last)) for first, last in ((3, 63), (70, 90), (90, 120)))
    said = [beginning, beginning + one, beginning + other, (*beginning[:59], 100)]
    sixtieth = []
    for own in range(3):
        found = nats(relevances(tiny, asked, said, [own] * 4, rivals(ASKED[:3])))
        assert found[:3] == pytest.approx([found[0]] * 3, abs=NATS)
        sixtieth.append(abs(found[3] - found[0]))
    assert max(sixtieth) > 5 * NATS


def test_a_text_that_is_equally_likely_after_all_prompts_says_nothing(tiny_folder: Path):
    assert _relevance(torch.full((5,), -30.0, dtype=torch.float64), 7) == Relevance(0.0, 7, False, 4)
    model = forgetful(tiny_folder)
    found = nats(relevances(model, rendered(model), texts(6), range(6), rivals(ASKED)))
    assert found == pytest.approx([0.0] * 6, abs=NATS)


def test_what_a_text_says_is_at_most_the_logarithm_of_the_number_of_prompts(tiny: LanguageModel):
    for seed, size, scale in [(0, 2, 1.0), (1, 3, 10.0), (2, 12, 1.0), (3, 12, 500.0)]:
        source = torch.Generator().manual_seed(seed)
        for _ in range(50):
            logp_J = scale * torch.randn(size, generator=source, dtype=torch.float64) - 400
            one = _relevance(logp_J, 9)
            assert one.nats <= math.log(size) + 1e-9
            assert one.share <= 1 + 1e-9
            assert one.identified == (int(logp_J.argmax()) == 0)
    certain = _relevance(torch.tensor([-10.0, -900.0, -900.0], dtype=torch.float64), 9)
    assert (certain.nats, certain.share) == (pytest.approx(math.log(3)), pytest.approx(1.0))
    asked = rendered(tiny)
    own = [greedy(tiny, prompt, 8) for prompt in asked]
    for said in (own, own[::-1], texts(6)):
        found = relevances(tiny, asked, said, range(6), rivals(ASKED))
        assert all(one is not None and one.share <= 1 + 1e-9 for one in found)


def test_the_order_of_the_other_prompts_changes_nothing(tiny: LanguageModel):
    asked, said = prompts(tiny, 4), texts(4)
    expected = nats(relevances(tiny, asked, said, range(4), rivals(ASKED[:4])))
    for order in permutations([1, 2, 3]):
        with case(order):
            moved = [0, *order]
            found = relevances(
                tiny, [asked[n] for n in moved], [said[n] for n in moved], range(4), rivals([ASKED[n] for n in moved])
            )
            assert nats(found) == pytest.approx([expected[n] for n in moved], abs=NATS)


def test_texts_are_scored_alike_however_many_there_are(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    asked, said = rendered(tiny), texts(12, longest=20)
    own = [index % 6 for index in range(12)]
    expected = nats(relevances(tiny, asked, said, own, rivals(ASKED)))
    for held in (1, 5, 12):
        monkeypatch.setattr(of_texts, "_ROWS", 6 * held)
        assert nats(relevances(tiny, asked, said, own, rivals(ASKED))) == pytest.approx(expected, abs=NATS), held


def test_a_text_without_tokens_and_a_prompt_without_rivals_have_no_relevance_and_do_not_shift_the_others(
    tiny: LanguageModel,
):
    asked, (first, second, third), against = prompts(tiny, 3), texts(3), [[1, 2], [], [0]]
    expected = nats(relevances(tiny, asked, [first, third], [0, 2], against))
    found = relevances(tiny, asked, [first, second, (), third], [0, 1, 2, 2], against)
    assert found[1:3] == [None, None]
    assert nats([found[0], found[3]]) == pytest.approx(expected, abs=NATS)
    assert relevances(tiny, asked, [], [], against) == []


# Rivals.


def near(prompt: str) -> list[str]:
    """The same words in another order, with one word changed, in other letters, and the prompt once more."""
    words = prompt.rstrip("?.").split()
    return [" ".join(words[::-1]), " ".join([*words[:-1], "Saturn"]), prompt.upper() + "!!", prompt]


def test_rivals_are_the_next_others_in_a_circle():
    apart = [f"a{number} b{number}" for number in range(RIVALS + 8)]
    for asked in (ASKED, apart[:2], apart[: RIVALS + 1], apart):
        size = len(asked)
        assert rivals(asked) == [[(own + k) % size for k in range(1, size)][:RIVALS] for own in range(size)]
    assert rivals(["alone"]) == [[]]
    assert rivals([]) == []


def test_every_prompt_of_the_traits_has_as_many_rivals_as_there_can_be():
    for name in available(RECIPES / "traits"):
        trait = load_trait(name)
        for asked in (trait.generation_prompts, trait.heldout_prompts):
            assert {len(others) for others in rivals(asked)} == {RIVALS}, name


def test_a_near_duplicate_of_a_prompt_is_no_rival_of_it():
    for prompt in ASKED:
        for again in near(prompt):
            for place in (0, 2, len(ASKED)):
                with case(prompt, again, place):
                    more = [*ASKED[:place], again, *ASKED[place:]]
                    held = {more[other] for other in rivals(more)[more.index(prompt)]}
                    assert held == set(ASKED) - {prompt}


def test_adding_a_near_duplicate_of_a_text_s_prompt_changes_nothing_for_it(tiny: LanguageModel):
    said = texts(6)
    expected = nats(relevances(tiny, rendered(tiny), said, range(6), rivals(ASKED)))
    for own in (0, 3):
        for again in near(ASKED[own]):
            with case(own, again):
                more = [*ASKED, again]
                found = relevances(tiny, rendered(tiny, more), said, range(6), rivals(more))
                assert nats(found)[own] == pytest.approx(expected[own], abs=NATS)


# The readout.


def measured(about: Subject, given: Sequence[Answer]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Whether each answer is identified, and its nats per token."""
    _, identified, per_token = readout.measure(about, given)
    assert (identified.name, per_token.name) == ("identified_share", "relevance")
    return identified.values, per_token.values


def test_answers_are_measured_under_base_and_the_neutral_prompt_whatever_the_stage(healed: Model):
    model, accumulator = healed
    asked, neutral = setup(model, base=accumulator.base, prompts=ASKED), rendered(model, system=NEUTRAL)
    stages = [
        Subject(asked, "healed", accumulator.student),
        Subject(asked, "base", accumulator.base),
        Subject(asked, "prompted", accumulator.base, persona=asked.trait.positive),
        Subject(asked, "steered", accumulator.student, intervention=vector(model, norm=3.0), coefficient=1.5),
    ]
    said = []
    for about in stages:
        with case(about.stage):
            given = about.answer()
            said.append(tuple(answer.ids for answer in given))
            first, second, third, *own = given  # three that do not speak to their prompts
            turned = zip((first, second, third), (second, third, first), strict=True)
            given = [*(replace(answer, ids=other.ids) for answer, other in turned), *own]
            with accumulator.base():
                expected = about_prompts(model, [answer.ids for answer in given], neutral, beginning(asked.tokens))
            found = [measured(stage, given) for stage in stages]
            assert all(one == found[0] for one in found)
            identified, per_token = found[0]
            for flag, value, answer, (nats, likeliest) in zip(identified, per_token, given, expected, strict=True):
                assert value * min(len(answer.ids), beginning(asked.tokens)) == pytest.approx(nats, abs=NATS)
                assert abs(nats) < NATS or flag == likeliest
    assert len(set(said)) == len(stages)


def test_an_answer_without_tokens_or_without_another_prompt_is_missing_from_both_signals(healed: Model):
    model, accumulator = healed
    about = Subject(setup(model, base=accumulator.base), "healed", accumulator.student)
    given = [
        Answer(prompt, tuple(model.chat.ids(NEUTRAL, prompt)), ids, "said", False)
        for prompt, ids in zip(ASKED, texts(6), strict=True)
    ]
    silent = [*given[:2], replace(given[2], ids=()), *given[3:]]
    for whole, values in zip(measured(about, given), measured(about, silent), strict=True):
        assert math.isnan(values[2])
        assert [*values[:2], *values[3:]] == pytest.approx([*whole[:2], *whole[3:]], abs=NATS)
    alike = [replace(given[0], prompt=prompt) for prompt in (ASKED[0], near(ASKED[0])[0])]
    for lone in (given[:1], alike, []):
        assert all(len(values) == len(lone) and all(map(math.isnan, values)) for values in measured(about, lone))


def test_answers_are_valid_where_base_s_interval_lies_above_twice_chance():
    for answered, twice in ((4, 2 / 4), (6, 2 / 6), (30, 2 / 6)):
        for low, valid in ((twice - 1e-6, False), (twice, False), (twice + 1e-6, True)):
            base = summary({"identified_share": Estimate(0.9, low, 1.0, answered)}, {})
            for signal in (IDENTIFIED, RELEVANCE):
                with case(answered, low, signal.name):
                    assert signal.validity is not None
                    found = signal.validity.judge(signal.name, Evidence(base, {}))
                    assert found.valid == valid
                    assert f"among {min(answered, 6)} prompts, more than {twice:.2f} needed" in found.why
    for base in ({}, summary({"identified_share": Estimate(math.nan, math.nan, math.nan, 0)}, {})):
        assert IDENTIFIED.validity is not None
        assert not IDENTIFIED.validity.judge("identified_share", Evidence(base, {})).valid
