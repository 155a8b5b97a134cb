"""Teacher-forced scores are those of a dense forward pass, whatever the batch."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from heal.decoding import decode
from heal.models.language_model import LanguageModel
from heal.scoring import completion_states, token_divergences, token_logprobs
from tests.cases import case
from tests.closeness import assert_near
from tests.tiny import HIDDEN, prompts, sized, vector

SAID = [[5], [7, 8, 9, 10, 11, 12], [200, 3], [40, 41, 42], [9, 9, 9, 9, 2]]


def dense_logprobs(language_model: LanguageModel, prompt: list[int], said: list[int]) -> Tensor:
    """`[N, V]` log-probabilities of every token where each completion token stands."""
    with torch.no_grad():
        logits = language_model.model(input_ids=torch.tensor([prompt + said])).logits[0]
    return torch.log_softmax(logits.float(), -1)[len(prompt) - 1 : -1]


def test_log_probabilities_are_those_of_a_dense_pass(architectures: dict[str, LanguageModel]):
    for name, model in architectures.items():
        with case(name):
            rows = prompts(model)
            scored = token_logprobs(model, completion_states(model, rows, SAID), SAID)
            dense = [
                dense_logprobs(model, prompt, said)[range(len(said)), said]
                for prompt, said in zip(rows, SAID, strict=True)
            ]
            assert list(map(len, scored)) == list(map(len, dense))
            assert_near(torch.cat(scored), torch.cat(dense))


def test_a_batch_of_one_scores_as_a_batch_of_many(architectures: dict[str, LanguageModel]):
    for name, model in architectures.items():
        rows = prompts(model)
        alone = [
            token_logprobs(model, completion_states(model, [prompt], [said]), [said])[0]
            for prompt, said in zip(rows, SAID, strict=True)
        ]
        for batch_tokens in (1, 150, 100_000):
            with case(name, batch_tokens):
                batched = sized(model, batch_tokens)
                together = token_logprobs(batched, completion_states(batched, rows, SAID), SAID)
                assert list(map(len, together)) == list(map(len, alone))
                assert_near(torch.cat(together), torch.cat(alone))


def test_there_is_one_state_for_each_completion_token_in_the_order_given(tiny: LanguageModel):
    states = completion_states(sized(tiny, 100), prompts(tiny), SAID)
    assert [tuple(h_ND.shape) for h_ND in states] == [(len(said), HIDDEN) for said in SAID]


def test_scoring_finds_every_token_that_was_decoded_greedily_the_most_probable(
    architectures: dict[str, LanguageModel],
):
    for name, model in architectures.items():
        rows, steering_vector = prompts(model), vector(model, norm=4.0)
        for shift, c in ((None, 0.0), (steering_vector, 1.5)):
            with case(name, c):
                paths = decode(model, rows, 12, shift, shift and [c] * len(rows))
                said = [path.ids for path in paths]
                for h_ND, ids in zip(completion_states(model, rows, said, shift, c), said, strict=True):
                    assert model.logits(h_ND).argmax(-1).tolist() == list(ids)


def test_equal_states_diverge_by_exactly_zero(architectures: dict[str, LanguageModel]):
    for name, model in architectures.items():
        with case(name):
            states = completion_states(model, prompts(model), SAID)
            for kl_N, said in zip(token_divergences(model, states, states), SAID, strict=True):
                assert torch.equal(kl_N, torch.zeros(len(said)))


def test_divergences_are_those_of_two_dense_passes(architectures: dict[str, LanguageModel]):
    for name, model in architectures.items():
        rows, steering_vector = prompts(model), vector(model)
        on = completion_states(model, rows, SAID, steering_vector, 2.0)
        off = completion_states(model, rows, SAID)
        for row, kl_N in enumerate(token_divergences(model, on, off)):
            with case(name, row):
                with steering_vector.applied(model, 2.0):
                    logp = dense_logprobs(model, rows[row], SAID[row]).double()
                logq = dense_logprobs(model, rows[row], SAID[row]).double()
                dense = kl_div(logq, logp, reduction="none", log_target=True).sum(-1)
                torch.testing.assert_close(kl_N.double(), dense, rtol=1e-3, atol=1e-5)


def test_progress_ends_at_the_number_of_rows(tiny: LanguageModel):
    told: list[tuple[int, int]] = []
    completion_states(sized(tiny, 100), prompts(tiny), SAID, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (len(SAID), len(SAID))
    assert len(told) > 1
    assert told == sorted(told)


def test_states_and_completions_that_do_not_match_are_an_error(tiny: LanguageModel):
    with pytest.raises(ValueError, match="zip"):
        completion_states(tiny, prompts(tiny), SAID[:-1])
