"""Decoding: what a row says depends on nothing but its prompt, dose and seed."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from heal import decoding
from heal.decoding import Decoded, Sampling, choose, decode
from heal.models.language_model import LanguageModel
from heal.scoring import completion_states
from tests.cases import case
from tests.closeness import assert_near
from tests.tiny import prompts, sized, vector

TOKENS = 12
SAMPLED = Sampling(temperature=1.0, top_p=0.95, top_k=64)
SEEDS = [(0, "row", row) for row in range(5)]
EDGES = (0.0, 0.5, 1 - 2**-24)  # the last is the largest number that torch.rand draws


def generated(language_model: LanguageModel, prompt: list[int], end_ids: Sequence[int]) -> tuple[int, ...]:
    """What transformers' own greedy search says."""
    with torch.no_grad():
        ids_BT = language_model.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=list(end_ids),
        )
    return tuple(ids_BT[0, len(prompt) :].tolist())


def endless(language_model: LanguageModel) -> LanguageModel:
    """The same model without a token that ends a turn."""
    return replace(language_model, end_ids=frozenset())


def with_ends(language_model: LanguageModel) -> LanguageModel:
    """The same model with end-of-turn tokens that some rows say within the budget, each at its own step."""
    said = decode(endless(language_model), prompts(language_model), TOKENS)
    return replace(language_model, end_ids=frozenset({said[0].ids[2], said[1].ids[7], said[2].ids[0]}))


@pytest.fixture(scope="module")
def ending(architectures: dict[str, LanguageModel]) -> dict[str, LanguageModel]:
    """The model of each architecture, some of whose rows end within the budget and some do not."""
    return {name: with_ends(model) for name, model in architectures.items()}


def cut(completion: Decoded, end_ids: frozenset[int]) -> tuple[int, ...]:
    """The ids up to and including the first that ends the turn."""
    stop = next((place for place, token in enumerate(completion.ids) if token in end_ids), len(completion.ids))
    return completion.ids[: stop + 1]


# Greedy


def test_greedy_says_what_transformers_generate_says_and_ends_where_it_ends(
    architectures: dict[str, LanguageModel], ending: dict[str, LanguageModel]
):
    for name, models in product(architectures, (architectures, ending)):
        with case(name, models[name].end_ids):
            rows = prompts(models[name])
            completions = decode(models[name], rows, TOKENS)
            for prompt, completion in zip(rows, completions, strict=True):
                assert completion.ids == generated(models[name], prompt, sorted(models[name].end_ids))
            assert models is architectures or any(completion.ended for completion in completions)


# Batches


def test_neither_the_batch_size_nor_the_order_of_the_rows_decides_anything(
    ending: dict[str, LanguageModel], architectures: dict[str, LanguageModel]
):
    for (name, model), sampling in product(ending.items(), (Sampling(), SAMPLED)):
        with case(name, sampling):
            together = decode(model, prompts(model), TOKENS, sampling=sampling, seeds=SEEDS)
            for size in (1, 3):
                smaller = decode(sized(model, rows=size), prompts(model), TOKENS, sampling=sampling, seeds=SEEDS)
                assert smaller == together, size

    for name, model in architectures.items():
        with case(name):
            rows = prompts(model)
            forth = decode(model, rows, TOKENS, sampling=SAMPLED, seeds=SEEDS)
            back = decode(model, rows[::-1], TOKENS, sampling=SAMPLED, seeds=SEEDS[::-1])
            assert back[::-1] == forth


# Ending


def test_rows_that_end_leave_and_the_others_go_on_as_if_alone(ending: dict[str, LanguageModel]):
    for name, model in ending.items():
        with case(name):
            free = decode(endless(model), prompts(model), TOKENS)
            stopped = decode(model, prompts(model), TOKENS)
            assert [completion.ids for completion in stopped] == [cut(completion, model.end_ids) for completion in free]
            assert len({len(completion.ids) for completion in stopped}) > 1


def test_looking_every_few_steps_decides_nothing(
    ending: dict[str, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy and sampled, with ends, loops and states, with steps that do not divide the budget."""
    for name, model in ending.items():
        asked = (model, prompts(model), TOKENS)
        for options in ({"loop_share": 0.2, "keep_states": True}, {"sampling": SAMPLED, "seeds": SEEDS}):
            monkeypatch.undo()
            wanted = decode(*asked, **options)
            for steps in (3, 8, 100):
                with case(name, steps, options):
                    monkeypatch.setattr(decoding, "steps_at_once", lambda device, steps=steps: steps)
                    for one, other in zip(decode(*asked, **options), wanted, strict=True):
                        assert replace(one, states_ND=None) == replace(other, states_ND=None)
                        if other.states_ND is not None:
                            assert_near(one.states_ND, other.states_ND)


def test_memory_that_stays_where_it_is_decides_nothing(
    ending: dict[str, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU records, step by step: rows of several lengths that leave at different steps, sliding windows."""
    monkeypatch.setattr(decoding, "Recorded", lambda work, device: work)
    monkeypatch.setattr(decoding, "_RECORDED", 1)
    for name, model in ending.items():
        asked = (prompts(model), TOKENS, vector(model), [0.0, 0.5, 1.0, 0.5, -0.5])
        for options in ({"loop_share": 0.2}, {"sampling": SAMPLED, "seeds": SEEDS}):
            with case(name, options):
                assert decode(replace(model, records=True), *asked, **options) == decode(model, *asked, **options)


def test_a_row_has_ended_exactly_where_its_last_token_ends_a_turn_and_a_larger_budget_only_adds_to_it(
    ending: dict[str, LanguageModel], tiny: LanguageModel
):
    for name, model in ending.items():
        with case(name):
            for completion in decode(model, prompts(model), TOKENS):
                assert not set(completion.ids[:-1]) & model.end_ids
                assert completion.ended == (completion.ids[-1] in model.end_ids)
                assert completion.ended or len(completion.ids) == TOKENS

    rows = prompts(tiny)[:1]
    said = decode(endless(tiny), rows, TOKENS)[0].ids
    place = next(place for place in range(1, TOKENS) if said[place] not in said[:place])
    model = replace(tiny, end_ids=frozenset({said[place]}))
    assert decode(model, rows, place + 1)[0] == Decoded(said[: place + 1], ended=True)
    assert decode(model, rows, place)[0] == Decoded(said[:place], ended=False)

    rows = prompts(tiny)
    short = decode(endless(tiny), rows, 5)
    long = decode(endless(tiny), rows, TOKENS)
    assert [completion.ids for completion in short] == [completion.ids[:5] for completion in long]


# Steering


def test_a_coefficient_for_each_row_says_what_separate_runs_say_even_when_others_leave(
    architectures: dict[str, LanguageModel],
):
    coefficients = [0.0, 1.0, -1.0, 2.0, 0.5]
    for name, model in architectures.items():
        with case(name):
            rows, steering_vector = prompts(model), vector(model, norm=5.0)
            together = decode(model, rows, TOKENS, steering_vector, coefficients)
            for prompt, coefficient, completion in zip(rows, coefficients, together, strict=True):
                assert decode(model, [prompt], TOKENS, steering_vector, [coefficient]) == [completion]
            assert together != decode(model, rows, TOKENS)

    coefficients = [0.0, 2.0, -1.0, 1.0, -2.0, 0.5]
    for name, model in architectures.items():
        with case(name):
            rows, steering_vector = [prompts(model)[2]] * 6, vector(model, norm=5.0)
            free = decode(endless(model), rows, TOKENS, steering_vector, coefficients)
            stopping = replace(model, end_ids=frozenset({free[0].ids[1], free[2].ids[0], free[4].ids[3]}))
            stopped = decode(stopping, rows, TOKENS, steering_vector, coefficients)
            assert [completion.ids for completion in stopped] == [cut(path, stopping.end_ids) for path in free]


def test_decoding_leaves_the_model_as_it_was(tiny: LanguageModel):
    rows = prompts(tiny)
    before = decode(tiny, rows, TOKENS)
    decode(tiny, rows, TOKENS, vector(tiny), [3.0] * len(rows), sampling=SAMPLED, seeds=SEEDS)
    assert decode(tiny, rows, TOKENS) == before


# Logits that are not finite


def test_what_is_not_finite_stops_its_own_row_alone_which_keeps_what_it_had_said(tiny: LanguageModel):
    rows, steering_vector = prompts(tiny), vector(tiny)
    for sampling in (Sampling(), SAMPLED):
        sound = decode(tiny, rows, TOKENS, steering_vector, [1.0] * 5, sampling=sampling, seeds=SEEDS)
        for dose in (math.nan, math.inf):
            with case(sampling, dose):
                doses = [1.0, dose, 1.0, 1.0, 1.0]
                completions = decode(tiny, rows, TOKENS, steering_vector, doses, sampling=sampling, seeds=SEEDS)
                assert completions[1] == Decoded((), ended=False, finite=False)
                assert [*completions[:1], *completions[2:]] == [*sound[:1], *sound[2:]]

    rows = prompts(tiny)[:1]
    said = decode(endless(tiny), rows, TOKENS)[0].ids
    place = next(place for place in range(2, TOKENS) if said[place] not in said[:place] and said[place] not in rows[0])
    broken = replace(tiny, model=copy.deepcopy(tiny.model))
    broken.model.get_input_embeddings().weight[said[place]] = math.nan
    assert decode(broken, rows, TOKENS) == [Decoded(said[: place + 1], ended=False, finite=False)]

    broken = replace(tiny, model=copy.deepcopy(tiny.model))
    broken.model.get_output_embeddings().weight.fill_(math.nan)
    assert decode(broken, prompts(tiny), TOKENS) == [Decoded((), ended=False, finite=False)] * 5
    kept = decode(broken, prompts(tiny), TOKENS, keep_states=True)
    assert all(each.states_ND is not None and len(each.states_ND) == 0 for each in kept)


# Sampling


def test_what_is_sampled_is_a_function_of_the_seeds_alone(tiny: LanguageModel):
    rows = prompts(tiny)
    first, again = (decode(tiny, rows, TOKENS, sampling=SAMPLED, seeds=SEEDS) for _ in range(2))
    other = decode(tiny, rows, TOKENS, sampling=SAMPLED, seeds=[(1, *seed) for seed in SEEDS])
    assert first == again != other

    rows = prompts(tiny)
    torch.manual_seed(1)
    first = decode(tiny, rows, TOKENS, sampling=SAMPLED, seeds=SEEDS)
    torch.manual_seed(2)
    assert decode(tiny, rows, TOKENS, sampling=SAMPLED, seeds=SEEDS) == first


def test_sampling_requires_seeds_and_an_intervention_a_coefficient_for_each_row(tiny: LanguageModel):
    with pytest.raises(ValueError, match="seeds"):
        decode(tiny, prompts(tiny), TOKENS, sampling=SAMPLED)

    for steering_vector, coefficients in ((vector(tiny), None), (None, [1.0] * 5)):
        with pytest.raises(ValueError, match="an intervention requires a coefficient for each row"):
            decode(tiny, prompts(tiny), TOKENS, steering_vector, coefficients)


def test_sampling_from_one_token_and_temperature_zero_are_greedy(tiny: LanguageModel):
    rows = prompts(tiny)
    greedy = decode(tiny, rows, TOKENS)
    assert decode(tiny, rows, TOKENS, sampling=Sampling(1.0, top_k=1), seeds=SEEDS) == greedy
    assert decode(tiny, rows, TOKENS, sampling=Sampling(1.0, top_p=1e-6), seeds=SEEDS) == greedy
    assert decode(tiny, rows, TOKENS, sampling=Sampling(1e-4), seeds=SEEDS) == greedy

    logits_BV = torch.stack([drawn(seed=seed) for seed in range(20)])
    assert choose(logits_BV, Sampling(), None).tolist() == logits_BV.argmax(-1).tolist()


def test_progress_ends_at_the_number_of_rows_and_no_prompts_give_no_completions(tiny: LanguageModel):
    told: list[tuple[int, int]] = []
    decode(sized(tiny, rows=2), prompts(tiny), 4, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (5, 5)

    assert decode(tiny, [], TOKENS) == []


# What prompts begin with, and states


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    return next(place for place, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1)


def alike(language_model: LanguageModel) -> list[list[int]]:
    """Prompts that begin alike."""
    return [language_model.chat.ids("Be brief and kind.", "fox " * row + "?") for row in range(5)]


def test_a_beginning_that_is_read_once_changes_nothing(architectures: dict[str, LanguageModel]):
    for name, model in architectures.items():
        apart, steering = replace(model, shares=False), (vector(model), [1.0, 2.0, 1.0, 0.0, 2.0])
        for sampling, shift in ((Sampling(), (None, None)), (SAMPLED, steering)):
            with case(name, sampling):
                shared, separate = (
                    decode(m, alike(m), TOKENS, *shift, sampling=sampling, seeds=SEEDS) for m in (model, apart)
                )
                assert shared == separate


@pytest.fixture
def shapes(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Rows and tokens of each pass through the decoder of `tiny`."""
    seen: list[tuple[int, ...]] = []
    whole = tiny.decoder.forward

    def forward(*args, **kwargs):
        seen.append(tuple(kwargs["input_ids"].shape))
        return whole(*args, **kwargs)

    monkeypatch.setattr(tiny.decoder, "forward", forward)
    return seen


def test_a_beginning_is_read_once_for_each_coefficient_and_rows_that_ended_are_not_computed_further(
    tiny: LanguageModel, shapes: list[tuple[int, ...]]
):
    rows = alike(tiny)
    decode(tiny, rows, 1, vector(tiny), [1.0, 2.0, 1.0, 1.0, 2.0])
    assert shapes[0] == (2, shared_length(rows))
    assert sum(count * width for count, width in shapes) < 5 * max(map(len, rows))

    model = with_ends(tiny)
    shapes.clear()
    completions = decode(model, prompts(tiny), TOKENS)
    left = sum(len(completion.ids) == TOKENS for completion in completions)
    assert shapes[0][0] == 5 > shapes[-1][0] >= left > 0


def test_kept_states_are_those_that_each_token_was_chosen_from(ending: dict[str, LanguageModel]):
    for name, model in ending.items():
        with case(name):
            completions = decode(model, prompts(model), TOKENS, keep_states=True)
            scored = completion_states(model, prompts(model), [completion.ids for completion in completions])
            for completion, h_ND in zip(completions, scored, strict=True):
                assert completion.states_ND is not None
                assert_near(completion.states_ND, h_ND)


# The choice of one token


def frequencies(logits_V: Tensor, sampling: Sampling, count: int) -> Tensor:
    """How often each token is chosen by evenly spread uniform numbers: within 1 / count of its probability."""
    u_B = (torch.arange(count) + 0.5) / count
    return torch.bincount(choose(logits_V.expand(count, -1), sampling, u_B), minlength=len(logits_V)) / count


def expected(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that transformers samples from."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return torch.softmax(warpers(torch.empty(1, 0, dtype=torch.long), logits_V[None]), -1)[0]


def drawn(vocabulary: int = 40, seed: int = 0) -> Tensor:
    return 2 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed))


def test_tokens_are_chosen_as_often_as_transformers_would_and_by_the_softmax():
    count, settings = 10_000, product((0.3, 1.0, 2.5), (1e-6, 0.5, 0.9, 1.0), (0, 1, 7, 1000))
    for seed, (temperature, top_p, top_k) in enumerate(settings):
        sampling = Sampling(temperature, top_p, top_k)
        with case(sampling, seed):
            often, probability = frequencies(drawn(seed=seed), sampling, count), expected(drawn(seed=seed), sampling)
            torch.testing.assert_close(often, probability, rtol=0, atol=1 / count + 1e-5)

    count = 100_000
    u_B = torch.rand(count, generator=torch.Generator().manual_seed(0))
    chosen = choose(drawn(10).expand(count, -1), Sampling(1.0), u_B)
    wanted = count * torch.softmax(drawn(10), -1)
    chi_square = ((torch.bincount(chosen, minlength=10) - wanted) ** 2 / wanted).sum()
    assert chi_square < 27.9  # 9 degrees of freedom: exceeded once in a thousand seeds


def test_no_token_that_is_outside_of_top_k_or_top_p_or_excluded_is_ever_chosen():
    for seed, sampling in product(range(50), (Sampling(5.0, top_k=3), Sampling(1.0, top_p=0.6))):
        with case(seed, sampling):
            logits_V = drawn(seed=seed)
            chosen = choose(logits_V.expand(len(EDGES), -1), sampling, torch.tensor(EDGES))
            assert (expected(logits_V, sampling)[chosen] > 0).all()

    logits_V = drawn()
    logits_V[::2] = -math.inf
    for sampling in (Sampling(1.0), SAMPLED):
        chosen = choose(logits_V.expand(len(EDGES), -1), sampling, torch.tensor(EDGES))
        assert (chosen % 2 == 1).all(), sampling


def test_a_choice_depends_neither_on_the_rows_beside_it_nor_on_rounding():
    logits_BV = torch.stack([drawn(seed=seed) for seed in range(20)])
    u_B = torch.rand(20, generator=torch.Generator().manual_seed(0))
    together = choose(logits_BV, SAMPLED, u_B)
    alone = [choose(logits_BV[row : row + 1], SAMPLED, u_B[row : row + 1]).item() for row in range(20)]
    assert together.tolist() == alone

    u_B = (torch.arange(200) + 0.5) / 200
    level, tilted = torch.zeros(10), 1e-6 * torch.randn(10, generator=torch.Generator().manual_seed(0))
    choices = [choose(logits_V.expand(200, -1), Sampling(1.0), u_B).tolist() for logits_V in (level, tilted)]
    assert choices[0] == choices[1]
