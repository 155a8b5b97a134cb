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
    for name, tiny in architectures.items():
        with case(name):
            asked = prompts(tiny)
            found = token_logprobs(tiny, completion_states(tiny, asked, SAID), SAID)
            dense = [
                dense_logprobs(tiny, prompt, said)[range(len(said)), said]
                for prompt, said in zip(asked, SAID, strict=True)
            ]
            assert [len(each) for each in found] == [len(each) for each in dense]
            assert_near(torch.cat(found), torch.cat(dense))


def test_a_batch_of_one_scores_as_a_batch_of_many(architectures: dict[str, LanguageModel]):
    for name, tiny in architectures.items():
        for batch_tokens in [1, 150, 100_000]:
            with case(name, batch_tokens):
                asked = prompts(tiny)
                model = sized(tiny, batch_tokens)
                together = token_logprobs(model, completion_states(model, asked, SAID), SAID)
                alone = [
                    token_logprobs(tiny, completion_states(tiny, [prompt], [said]), [said])[0]
                    for prompt, said in zip(asked, SAID, strict=True)
                ]
                assert [len(each) for each in together] == [len(each) for each in alone]
                assert_near(torch.cat(together), torch.cat(alone))


def test_there_is_one_state_for_each_completion_token_in_the_order_given(tiny: LanguageModel):
    states = completion_states(sized(tiny, 100), prompts(tiny), SAID)
    assert [tuple(h_ND.shape) for h_ND in states] == [(len(said), HIDDEN) for said in SAID]


def test_scoring_what_was_decoded_greedily_finds_every_token_the_most_probable(architectures: dict[str, LanguageModel]):
    for name, tiny in architectures.items():
        with case(name):
            asked = prompts(tiny)
            said = [completion.ids for completion in decode(tiny, asked, 12)]
            for h_ND, ids in zip(completion_states(tiny, asked, said), said, strict=True):
                assert tiny.logits(h_ND).argmax(-1).tolist() == list(ids)


def test_scoring_under_steering_finds_what_was_decoded_under_steering(architectures: dict[str, LanguageModel]):
    for name, tiny in architectures.items():
        with case(name):
            asked, steering_vector = prompts(tiny), vector(tiny, norm=4.0)
            said = [each.ids for each in decode(tiny, asked, 12, steering_vector, [1.5] * len(asked))]
            states = completion_states(tiny, asked, said, steering_vector, 1.5)
            for h_ND, ids in zip(states, said, strict=True):
                assert tiny.logits(h_ND).argmax(-1).tolist() == list(ids)


def test_equal_states_diverge_by_exactly_zero(architectures: dict[str, LanguageModel]):
    for name, tiny in architectures.items():
        with case(name):
            states = completion_states(tiny, prompts(tiny), SAID)
            for kl_N, said in zip(token_divergences(tiny, states, states), SAID, strict=True):
                assert torch.equal(kl_N, torch.zeros(len(said)))


def test_divergences_are_those_of_two_dense_passes(architectures: dict[str, LanguageModel]):
    for name, tiny in architectures.items():
        with case(name):
            asked, steering_vector = prompts(tiny), vector(tiny)
            on = completion_states(tiny, asked, SAID, steering_vector, 2.0)
            off = completion_states(tiny, asked, SAID)
            for row, kl_N in enumerate(token_divergences(tiny, on, off)):
                with steering_vector.applied(tiny, 2.0):
                    logp = dense_logprobs(tiny, asked[row], SAID[row]).double()
                logq = dense_logprobs(tiny, asked[row], SAID[row]).double()
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
