"""Steering: what a vector does to a model, how it is read out of one, and how it is kept on disk."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heal.errors import UserError
from heal.models.language_model import LanguageModel
from heal.steering.extract import contexts, extract, last_token_activations, pair_activations
from heal.steering.sites import Site
from heal.steering.vector import SteeringVector
from heal.trait import Trait
from tests.cases import case
from tests.closeness import assert_near
from tests.tiny import BLOCKS, HIDDEN, load, prompts, sized, states, vector

TEXTS = [f"Tell me about {thing}." for thing in ("elks", "a very old house by the sea", "tea", "the law", "x", "maps")]


def logits(language_model: LanguageModel, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return language_model.model(input_ids=torch.tensor([list(ids)])).logits[0]


def block_inputs(
    language_model: LanguageModel, ids: Sequence[int], steering_vector: SteeringVector, coefficient: float
) -> list[Tensor]:
    """What each block is given, `[T, D]` by block, under steering."""
    seen: list[Tensor] = []
    handles = [
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
        for block in language_model.blocks
    ]
    try:
        with steering_vector.applied(language_model, coefficient):
            logits(language_model, ids)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def hook_count(language_model: LanguageModel) -> int:
    return sum(len(block._forward_hooks) for block in language_model.blocks)


def save(steering_vector: SteeringVector, folder: Path) -> Path:
    path = folder / "vector.safetensors"
    path.write_bytes(steering_vector.to_bytes())
    return path


# Applying


def test_coefficient_zero_is_the_model_itself_bit_for_bit(architectures: dict[str, LanguageModel]):
    for name, model in architectures.items():
        with case(name):
            ids = prompts(model)[2]
            before = logits(model, ids)
            with vector(model, norm=1e3).applied(model, 0.0):
                assert torch.equal(logits(model, ids), before)


def test_a_coefficient_shifts_the_block_s_output_by_that_much_at_every_position_and_moves_the_logits(
    architectures: dict[str, LanguageModel],
):
    for name, model in architectures.items():
        with case(name):
            steering_vector = vector(model, layers=(1,))
            plain, shifted = (block_inputs(model, prompts(model)[1], steering_vector, c) for c in (0.0, -2.5))
            assert torch.equal(plain[1], shifted[1])
            shift_TD = (-2.5 * steering_vector.directions[1]).expand_as(plain[2])
            assert_near(shifted[2], plain[2] + shift_TD)

    for name, model in architectures.items():
        with case(name):
            ids = prompts(model)[2]
            before = logits(model, ids)
            with vector(model, norm=10.0).applied(model, 1.0):
                assert not torch.allclose(logits(model, ids), before, atol=1e-2)


def test_a_coefficient_for_each_row_equals_separate_runs_whether_in_a_tensor_or_a_list(
    architectures: dict[str, LanguageModel], tiny: LanguageModel
):
    coefficients = [0.0, 1.0, -3.0, 0.25]
    for name, model in architectures.items():
        with case(name):
            ids, steering_vector = prompts(model)[2], vector(model)
            with torch.no_grad(), steering_vector.applied(model, coefficients):
                together = model.model(input_ids=torch.tensor([ids] * len(coefficients))).logits
            for row, coefficient in enumerate(coefficients):
                with steering_vector.applied(model, coefficient):
                    assert_near(together[row], logits(model, ids))

    ids_BT = torch.tensor([prompts(tiny)[0]] * 2)
    results = []
    for coefficients in ([0.5, 2.0], torch.tensor([0.5, 2.0])):
        with torch.no_grad(), vector(tiny).applied(tiny, coefficients):
            results.append(tiny.model(input_ids=ids_BT).logits)
    assert torch.equal(*results)


def test_nothing_is_left_in_the_model_afterwards_or_after_an_exception(tiny: LanguageModel):
    ids = prompts(tiny)[2]
    before = logits(tiny, ids)
    with vector(tiny).applied(tiny, 5.0):
        assert hook_count(tiny) == 2
    assert hook_count(tiny) == 0
    assert torch.equal(logits(tiny, ids), before)

    with pytest.raises(KeyboardInterrupt), vector(tiny).applied(tiny, 5.0):
        raise KeyboardInterrupt
    assert hook_count(tiny) == 0

    last_token_activations(tiny, prompts(tiny), [Site(1)])
    assert hook_count(tiny) == 0


def test_two_vectors_add_up(tiny: LanguageModel):
    ids = prompts(tiny)[2]
    steering_vector = vector(tiny)
    with steering_vector.applied(tiny, 3.0):
        once = logits(tiny, ids)
    with steering_vector.applied(tiny, 1.0), steering_vector.applied(tiny, 2.0):
        assert_near(logits(tiny, ids), once)


def test_a_half_precision_model_keeps_its_dtype(tiny_folder: Path):
    half = load(tiny_folder, torch.bfloat16)
    ids_BT = torch.tensor([prompts(half)[0]])
    with torch.no_grad(), vector(half).applied(half, 1.0):
        assert half.decoder(input_ids=ids_BT).last_hidden_state.dtype == torch.bfloat16


def test_a_vector_of_another_model_width_or_depth_is_refused(tiny: LanguageModel):
    foreign = replace(vector(tiny), model="someone/else")
    with pytest.raises(UserError, match="someone/else"), foreign.applied(tiny, 1.0):
        pass
    assert hook_count(tiny) == 0

    for directions in [{1: torch.ones(HIDDEN + 1)}, {1: torch.ones(1)}, {BLOCKS: torch.ones(HIDDEN)}]:
        with case(directions):
            foreign = replace(vector(tiny), states=states(directions))
            with pytest.raises(UserError, match=f"does not fit a model of {BLOCKS} blocks of width {HIDDEN}"):
                foreign.check_fits(tiny)


# On disk


def test_a_vector_is_saved_and_loaded_to_the_byte_and_calibrating_it_changes_c_star_alone(
    tiny: LanguageModel, tmp_path: Path
):
    for c_star in [None, 12.345678901234567, 1e-9]:
        with case(c_star):
            steering_vector = replace(vector(tiny), c_star=c_star)
            loaded = SteeringVector.load(save(steering_vector, tmp_path))
            assert list(loaded.directions) == list(steering_vector.directions)
            for layer, v_D in steering_vector.directions.items():
                assert torch.equal(loaded.directions[layer], v_D)
            assert replace(loaded, states={}) == replace(steering_vector, states={})

    steering_vector = vector(tiny)
    turned = replace(steering_vector, states=dict(reversed(steering_vector.states.items())))
    assert steering_vector.to_bytes() == turned.to_bytes()

    steering_vector = vector(tiny)
    assert replace(steering_vector.with_c_star(3.0), c_star=None) == steering_vector


def test_a_file_that_is_truncated_holds_no_vector_or_is_not_there_is_refused(
    tiny: LanguageModel, tmp_path: Path, tiny_folder: Path
):
    content = vector(tiny).to_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.safetensors: not a steering vector"):
            SteeringVector.load(path)

    for path in (tiny_folder / "model.safetensors", tmp_path / "none.safetensors"):
        with case(path), pytest.raises(UserError, match="not a steering vector"):
            SteeringVector.load(path)


# Comparing


def test_the_cosine_is_over_the_shared_blocks_with_its_sign_and_nan_without_any(tiny: LanguageModel):
    steering_vector = vector(tiny)
    opposite = replace(steering_vector, states=states({k: -2 * v for k, v in steering_vector.directions.items()}))
    assert steering_vector.cosine(steering_vector) == pytest.approx(1.0)
    assert steering_vector.cosine(opposite) == pytest.approx(-1.0)

    first, second = vector(tiny, layers=(0, 1)), vector(tiny, layers=(0, 1, 2))
    assert first.cosine(second) == pytest.approx(1.0)
    assert math.isnan(first.cosine(vector(tiny, layers=(2, 3))))


# Extracting


def test_a_vector_of_no_contexts_is_an_error(tiny: LanguageModel, tiny_trait: Trait):
    with pytest.raises(ValueError, match="no contexts"):
        extract(tiny, tiny_trait, [], "mean_diff", [1])


def test_activations_are_the_block_s_outputs_at_the_last_token_of_one_row_or_many(
    architectures: dict[str, LanguageModel],
):
    for name, model in architectures.items():
        with case(name):
            rows = prompts(model)
            activations = last_token_activations(model, rows, [Site(layer) for layer in (0, 1, 2)])
            for row, ids in enumerate(rows):
                with torch.no_grad():
                    hidden = model.decoder(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
                for layer in (0, 1, 2):
                    assert_near(activations[Site(layer)][row], hidden[layer + 1][0, -1])

    sites = [Site(1), Site(2)]
    for name, model in architectures.items():
        with case(name):
            together = last_token_activations(model, prompts(model), sites)
            for row, ids in enumerate(prompts(model)):
                alone = last_token_activations(model, [ids], sites)
                for site in sites:
                    assert_near(together[site][row], alone[site][0])


def test_extraction_stops_after_the_deepest_block_that_it_reads(architectures: dict[str, LanguageModel]):
    for name, model in architectures.items():
        called: list[int] = []
        handles = [
            block.register_forward_pre_hook(lambda module, inputs, layer=layer, called=called: called.append(layer))
            for layer, block in enumerate(model.blocks)
        ]
        try:
            last_token_activations(model, prompts(model)[:1], [Site(2), Site(0)])
        finally:
            for handle in handles:
                handle.remove()
        assert called == [0, 1, 2], name


def test_pairs_are_asked_under_both_personas_at_the_assistant_tag(tiny: LanguageModel, tiny_trait: Trait):
    positive, negative = pair_activations(tiny, tiny_trait, TEXTS[:1], [Site(1)])
    rows = [tiny.chat.ids(persona, TEXTS[0]) for persona in (tiny_trait.positive, tiny_trait.negative)]
    expected = last_token_activations(tiny, rows, [Site(1)])[Site(1)]
    torch.testing.assert_close(torch.cat([positive[Site(1)], negative[Site(1)]]), expected)


def test_a_vector_is_the_mean_difference_whatever_the_batches_and_the_opposite_with_swapped_personas(
    tiny: LanguageModel, tiny_trait: Trait
):
    singles = [
        last_token_activations(
            tiny,
            [tiny.chat.ids(persona, text) for persona in (tiny_trait.positive, tiny_trait.negative)],
            [Site(1), Site(2)],
        )
        for text in TEXTS
    ]
    for batch_tokens in (1, 300, 100_000):
        extracted = extract(sized(tiny, batch_tokens), tiny_trait, TEXTS, "mean_diff", [1, 2])
        for layer in (1, 2):
            expected = torch.stack([single[Site(layer)][0] - single[Site(layer)][1] for single in singles]).mean(0)
            assert_near(extracted.directions[layer], expected)

    swapped = replace(tiny_trait, positive=tiny_trait.negative, negative=tiny_trait.positive)
    there, back = (extract(tiny, trait, TEXTS[:3], "mean_diff", [1]) for trait in (tiny_trait, swapped))
    assert_near(there.directions[1], -back.directions[1])


def test_a_vector_says_where_it_comes_from(tiny: LanguageModel, tiny_trait: Trait):
    extracted = extract(tiny, tiny_trait, TEXTS[:2], "mean_diff", [1])
    assert replace(extracted, states={}) == SteeringVector(
        {}, "mean_diff", tiny.name, "warm", settings=extracted.settings
    )
    assert all(v_D.dtype == torch.float32 for v_D in extracted.directions.values())


def test_progress_ends_at_the_number_of_prompts(tiny: LanguageModel, tiny_trait: Trait):
    told: list[tuple[int, int]] = []
    extract(sized(tiny, 300), tiny_trait, TEXTS, "mean_diff", [1], lambda done, total: told.append((done, total)))
    assert told[-1] == (2 * len(TEXTS), 2 * len(TEXTS))
    assert told == sorted(told)


def test_contexts_are_distinct_and_a_smaller_number_is_a_prefix():
    many = contexts(64)
    assert len(set(many)) == 64
    assert contexts(10) == many[:10]
