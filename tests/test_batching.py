"""Batch sizes: they grow while it pays and shrink where memory is short, and results do not depend on them."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch

from heal.decoding import Sampling, decode
from heal.errors import RoundError
from heal.memory import out_of_memory
from heal.models.batch_sizes import batching_for, measured_rows, measured_tokens
from heal.models.batching import Batching, fastest, in_parts
from heal.models.language_model import LanguageModel
from heal.scoring import completion_states
from heal.steering.extract import last_token_activations
from heal.steering.sites import Site
from tests.cases import case
from tests.closeness import assert_near
from tests.tiny import prompts, sized

FULL = torch.OutOfMemoryError("out of memory: tried to allocate 2 GiB")
OTHERS_FULL = (
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
)


class Small:
    """Fails where more than `room` rows go through the decoder at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, language_model: LanguageModel, room: int):
        self.failed = 0
        whole = language_model.decoder.forward

        def forward(*args, **kwargs):
            if len(kwargs["input_ids"]) > room:
                self.failed += 1
                raise FULL
            return whole(*args, **kwargs)

        monkeypatch.setattr(language_model.decoder, "forward", forward)


def test_decoding_that_runs_out_of_memory_goes_on_with_half_the_rows(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    model, asked, seeds = sized(tiny), prompts(tiny), [(0, row) for row in range(5)]
    expected = decode(model, asked, 9, sampling=Sampling(1.0), seeds=seeds)
    small = Small(monkeypatch, model, 2)
    assert decode(model, asked, 9, sampling=Sampling(1.0), seeds=seeds) == expected
    assert small.failed
    assert model.batching.rows == 24
    assert tiny.batching.rows == 96


def test_scoring_and_extraction_that_run_out_of_memory_go_on_with_halves(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    asked, said = [[row, 7, 8] for row in range(10, 15)], [[5, 6, 7]] * 5
    expected = completion_states(tiny, asked, said), last_token_activations(tiny, asked, [Site(1)])[Site(1)]
    model = sized(tiny)
    small = Small(monkeypatch, model, 2)
    found = completion_states(model, asked, said), last_token_activations(model, asked, [Site(1)])[Site(1)]
    assert small.failed
    assert model.batching.tokens < 4096
    for a, b in zip(found[0], expected[0], strict=True):
        assert_near(a, b)
    assert_near(found[1], expected[1])


def test_a_single_tree_that_does_not_fit_is_halved_down_to_its_rows(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    asked, said = [list(range(20, 40))] * 6, [[50 + row, 5, 6, 7] for row in range(6)]
    expected = completion_states(tiny, asked, said)
    model, whole, failed = sized(tiny), tiny.decoder.forward, []

    def forward(*args, **kwargs):
        if kwargs["input_ids"].shape[1] > 30:
            failed.append(kwargs["input_ids"].shape)
            raise FULL
        return whole(*args, **kwargs)

    monkeypatch.setattr(tiny.decoder, "forward", forward)
    for found, wanted in zip(completion_states(model, asked, said), expected, strict=True):
        assert_near(found, wanted)
    assert failed == [(1, 20 + 6 * 3)]  # three rows of it fit
    assert model.batching.tokens == 2048


def test_batches_end_at_the_first_halving_that_fits():
    for room in [96, 48, 12, 5, 1]:
        with case(room):
            batching, done = Batching(rows=96), []

            def work(items: Sequence[int]) -> None:
                if len(items) > room:
                    raise FULL
                done.extend(items)

            in_parts(range(96), work, partial(batching.shrink_rows, batching.rows))
            assert done == list(range(96))
            assert batching.rows == max(96 >> halvings for halvings in range(7) if 96 >> halvings <= room)


def test_passes_that_were_planned_together_and_each_failed_once_halve_the_budget_once(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    model, said = sized(tiny, tokens=256), [[5, 6]] * 80
    asked = [[3 + row, *range(3, 33)] for row in range(80)]  # with the answer, eight rows a pass
    small = Small(monkeypatch, model, 4)
    completion_states(model, asked, said)
    assert (small.failed, model.batching.tokens) == (10, 128)
    completion_states(model, asked, said)
    assert (small.failed, model.batching.tokens) == (10, 128)


def test_a_single_row_that_does_not_fit_is_said(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    Small(monkeypatch, tiny, 0)
    with pytest.raises(RoundError, match="out of memory with a single row"):
        decode(tiny, prompts(tiny), 3)


def test_another_error_is_not_taken_for_a_lack_of_memory():
    def work(items: object) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        in_parts([1, 2], work, lambda halvings: None)
    assert out_of_memory(FULL)
    assert all(out_of_memory(RuntimeError(text)) for text in OTHERS_FULL)
    assert not out_of_memory(RuntimeError("shapes do not match"))


def test_a_size_grows_as_long_as_doubling_pays():
    for best in [16, 64, 1024]:
        with case(best):
            assert fastest(lambda size: float(min(size, best)), 16) == best
    assert fastest(float, 4, 12) == 12
    assert fastest(float, 3, 3) == 3


def test_a_size_stops_growing_where_memory_ends_and_is_half_the_first_where_that_does_not_fit():
    for room in [128, 16, 4]:
        with case(room):

            def rate(size: int) -> float:
                if size > room:
                    raise FULL
                return float(size)

            assert fastest(rate, 16) == max(room, 8)


def test_sizes_asked_for_are_taken_and_a_cpu_is_not_measured(tiny: LanguageModel):
    assert batching_for(tiny, 7, 300, 10) == Batching(7, 300, 10)
    assert batching_for(tiny) == Batching()


def test_a_model_can_be_measured(tiny: LanguageModel):
    assert measured_rows(tiny) >= 16
    assert measured_tokens(tiny) >= 1024
