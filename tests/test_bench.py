"""What the measuring tools measure is what was done, and the plain round computes what heal computes."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from heal.decoding import decode
from heal.evaluation.asking.letters import letter_ids
from heal.generation.relevance import tail_perplexities
from heal.models.language_model import LanguageModel
from heal.scoring import completion_states, token_divergences, token_logprobs
from heal.steering.extract import extract
from heal.studies.bench import limits as measuring
from heal.studies.bench import serial
from heal.studies.bench.limits import Cost, Limits, copy_rate, count_flops, decoding_bytes, matmul_rate
from heal.studies.bench.table import Row, Table
from heal.studies.bench.timing import interleaved, median_seconds, peak_bytes
from heal.trait import Trait
from tests.cases import case
from tests.closeness import assert_near
from tests.students import completions, learn, student, weights
from tests.tiny import BLOCKS, CPU, prompts, vector
from tests.training import BARRIER, dense_loss

TEXTS = ["Write a loop.", "Hello there!", "A mail to a colleague about a late delivery."]
SAID = [[5], [7, 8, 9, 10, 11, 12], [200, 3], [40, 41, 42], [9, 9, 9, 9, 2]]
MEGA = 10**6
ROWS = completions(6)
PAIRS = [(row.prompt_ids, row.ids) for row in ROWS]


# Time.


def test_arms_take_turns_after_each_has_run_once_and_as_long_as_the_clock_says(monkeypatch: pytest.MonkeyPatch):
    called: list[str] = []
    found = interleaved({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3, CPU)
    assert called == ["a", "b"] * 4
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}
    assert all(second >= 0 for seconds in found.values() for second in seconds)

    now = [0.0]
    monkeypatch.setattr("heal.studies.bench.timing.time.perf_counter", lambda: now[0])
    waits = iter([9.0, 9.0, 1.0, 2.0, 5.0, 2.0, 3.0, 2.0])  # the unmeasured two first

    def work() -> None:
        now[0] += next(waits)

    assert median_seconds({"a": work, "b": work}, 3, CPU) == {"a": 3.0, "b": 2.0}


def test_the_rates_of_a_machine_that_takes_a_second_for_each_clock_tick(monkeypatch: pytest.MonkeyPatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("heal.studies.bench.limits.time.perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(measuring, "MATRIX_GPU", 32)
    assert matmul_rate(CPU, torch.float32, size=64, seconds=3.0) == 2 * 64**3
    assert matmul_rate(torch.device("meta"), torch.float32, seconds=3.0) == 2 * 32**3  # off the CPU
    assert copy_rate(CPU, size=1000, seconds=3.0) == 2 * 1000


def test_the_share_is_that_of_the_nearer_limit_and_says_what_could_not_be_counted():
    machine = Limits(flops=3e9, bandwidth=1e9)
    for cost, fraction, limit in [
        (Cost(3 * 10**9), 0.5, "arithmetic"),
        (Cost(3 * 10**9, moved=5 * 10**8), 0.5, "arithmetic"),
        (Cost(3 * 10**9, moved=15 * 10**8), 0.75, "memory"),
        (Cost(None, moved=10**9, note="no formula"), 0.5, "memory"),
        (Cost(None, note="no formula"), None, ""),
    ]:
        with case(cost):
            found = machine.share(cost, seconds=2.0)
            assert (found.fraction, found.limit, found.note) == (fraction, limit, cost.note)


# Memory.


def allocate_free_allocate() -> None:
    first = torch.empty(80 * MEGA, dtype=torch.uint8)
    del first
    torch.empty(40 * MEGA, dtype=torch.uint8)


def hold_both() -> list[Tensor]:
    return [torch.empty(80 * MEGA, dtype=torch.uint8), torch.empty(40 * MEGA, dtype=torch.uint8)]


def test_the_peak_is_what_was_allocated_at_once_inside_a_backward_pass_too():
    for work, expected in [(allocate_free_allocate, 80), (hold_both, 120), (lambda: None, 0)]:
        with case(work, expected):
            held_before = torch.empty(10 * MEGA, dtype=torch.uint8)
            assert peak_bytes(work, CPU) == expected * MEGA
            del held_before

    x = torch.ones(1, requires_grad=True)
    found = peak_bytes(lambda: _Wasteful.apply(x).sum().backward(), CPU)
    assert 60 * MEGA <= found < 60 * MEGA + 100


class _Wasteful(torch.autograd.Function):
    """Identity whose backward takes 60 MB for a moment."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, up: Tensor) -> Tensor:
        torch.empty(60 * MEGA, dtype=torch.uint8)
        return up


# FLOPs and bytes.


def flops(work: Callable[[], object]) -> int:
    counted = count_flops(work)
    assert counted.flops is not None
    return counted.flops


def test_the_flops_of_a_matmul_are_twice_its_products_and_of_a_lora_layer_without_the_frozen_gradient():
    a, b, c = torch.randn(5, 7), torch.randn(7, 11), torch.randn(11)
    assert flops(lambda: a @ b) == 2 * 5 * 7 * 11
    assert flops(lambda: torch.addmm(c, a, b)) == 2 * 5 * 7 * 11
    assert flops(lambda: torch.bmm(a.expand(3, 5, 7), b.expand(3, 7, 11))) == 3 * 2 * 5 * 7 * 11
    with torch.inference_mode():
        assert flops(lambda: linear(a, b.T, c)) == 2 * 5 * 7 * 11

    tokens, width, rank, out = 13, 8, 2, 16
    x, weight = torch.randn(tokens, width), torch.randn(out, width)
    a = torch.randn(rank, width, requires_grad=True)
    b = torch.randn(out, rank, requires_grad=True)
    forward = 2 * tokens * (width * out + width * rank + rank * out)
    backward = 2 * tokens * (rank * out + rank * out + width * rank)  # dB, d(Ax), dA
    assert flops(lambda: (linear(x, weight) + linear(linear(x, a), b)).sum().backward()) == forward + backward


def test_the_flops_of_attention_are_two_products_forward_and_five_backward_for_each_head():
    for causal in [True, False]:
        with case(causal):
            q, k, v = (torch.randn(2, 4, 10, 8, requires_grad=True) for _ in range(3))
            product = 2 * (2 * 4) * 10 * 10 * 8
            assert flops(lambda: scaled_dot_product_attention(q, k, v, is_causal=causal)) == 2 * product
            found = flops(lambda: scaled_dot_product_attention(q, k, v, is_causal=causal).sum().backward())
            assert found == 7 * product

    q = torch.randn(2, 4, 10, 8, requires_grad=True)
    k, v = (torch.randn(2, 2, 10, 8, requires_grad=True) for _ in range(2))
    product = 2 * (2 * 4) * 10 * 10 * 8
    assert flops(lambda: scaled_dot_product_attention(q, k, v, enable_gqa=True)) == 2 * product
    assert flops(lambda: scaled_dot_product_attention(q, k, v, enable_gqa=True).sum().backward()) == 7 * product


def test_an_operation_whose_flops_cannot_be_counted_is_named_and_still_done(monkeypatch: pytest.MonkeyPatch):
    def refuses(*args, **kwargs) -> int:
        raise AssertionError("shapes are incompatible")

    monkeypatch.setitem(measuring.flop_registry, torch.ops.aten.bmm, refuses)
    a, b, made = torch.randn(3, 5, 7), torch.randn(3, 7, 11), []
    counted = count_flops(lambda: made.append(torch.bmm(a, b)))
    assert (counted.flops, made[0].shape) == (None, (3, 5, 11))
    assert "FLOPs not counted" in counted.note
    assert "aten.bmm" in counted.note
    assert flops(lambda: a[0] @ b[0]) == 2 * 5 * 7 * 11


def test_decoding_reads_the_weights_for_each_token_and_the_cache_that_transformers_keeps(
    architectures: dict[str, LanguageModel],
):
    for name, tiny in architectures.items():
        with case(name):
            rows, tokens = prompts(tiny, 2), 5
            embedding, head = tiny.model.get_input_embeddings(), tiny.model.get_output_embeddings()
            read = sum(weight.nbytes for weight in tiny.model.parameters())
            read -= embedding.weight.nbytes if embedding.weight is not head.weight else 0
            cache = 0
            for row in rows:
                for step in range(1, tokens):
                    ids_1T = torch.tensor([[*row, *[5] * step]])
                    with torch.no_grad():
                        layers = tiny.model(input_ids=ids_1T, use_cache=True).past_key_values.layers
                    past = [getattr(layer, "sliding_window", None) or ids_1T.shape[1] for layer in layers]
                    for layer, window in zip(layers, past, strict=True):
                        each = layer.keys[0, :, 0].nbytes + layer.values[0, :, 0].nbytes
                        cache += each * min(window, ids_1T.shape[1])
            assert decoding_bytes(tiny, [len(row) for row in rows], tokens) == tokens * read + cache


def test_the_flops_of_a_step_grow_with_the_completions(tiny_folder: Path):
    def step(pairs: list) -> int:
        model, accumulator = student(tiny_folder)
        return flops(
            lambda: serial.heal(
                model,
                accumulator,
                pairs,
                epochs=1,
                learning_rate=1e-3,
                betas=(0.9, 0.95),
                accumulation=4,
                strength=0.3,
                tau=0.5,
            )
        )

    assert step(PAIRS[:4]) == sum(step([pair]) for pair in PAIRS[:4]) > 0


# The table.


def test_a_row_is_json_with_every_field_and_an_aligned_line_that_leaves_blank_what_was_not_measured():
    row = Row("heal", 2.0, 6.0, 3.0, 0.25, 1000.0, 2**20, "two cores")
    assert Row(**json.loads(json.dumps(asdict(row)))) == row

    lines: list[str] = []
    table = Table(lines.append)
    table.add(Row("heal", 2.0, 6.0, 3.0, 0.25, 1234.0, 3 * 2**20, "as it is", "memory"))
    assert len(lines) == 2
    table.add(Row("history_decode_16 llama-3.1-8b", None, note="not measured: out of memory"))
    header, first, second = lines
    assert first.split() == ["heal", "2.000", "6.000", "3.00", "25.0%", "memory", "1,234", "3.0", "as", "it", "is"]
    assert second.split() == ["history_decode_16", "llama-3.1-8b", "not", "measured:", "out", "of", "memory"]
    assert header.index("note") == first.index("as it is") == second.index("not measured")
    assert first[: header.index("seconds") + len("seconds")].endswith(" 2.000")


# The plain round.


def test_the_plain_vector_is_heal_s_and_that_of_the_last_block_is_refused(
    tiny: LanguageModel, tiny_trait: Trait, architectures: dict[str, LanguageModel]
):
    with pytest.raises(ValueError, match="last one"):
        serial.extract(tiny, tiny_trait, TEXTS, [BLOCKS - 1])

    for name, tiny in architectures.items():
        with case(name):
            found = serial.extract(tiny, tiny_trait, TEXTS, [1, 2])
            expected = extract(tiny, tiny_trait, TEXTS, "mean_diff", [1, 2])
            assert (found.method, found.model, found.trait) == (expected.method, expected.model, expected.trait)
            for layer in (1, 2):
                torch.testing.assert_close(found.directions[layer], expected.directions[layer], rtol=1e-4, atol=1e-4)


def test_plain_greedy_answers_are_heal_s_and_samples_repeat_with_their_seed(
    tiny: LanguageModel, architectures: dict[str, LanguageModel]
):
    asked, steering, doses = prompts(tiny), vector(tiny, norm=4.0), [0.5, 1.0, 1.5, 2.0, 2.5]
    first, again, other = (
        serial.generate(tiny, steering, asked, doses, 8, temperature=1.0, top_p=0.95, top_k=64, seed=s)
        for s in (0, 0, 100)
    )
    assert first == again != other
    narrow = serial.generate(tiny, steering, asked, doses, 8, temperature=1.0, top_p=1.0, top_k=1, seed=0)
    assert narrow == [each.ids for each in decode(tiny, asked, 8, steering, doses)]

    for name, tiny in architectures.items():
        with case(name):
            asked, steering = prompts(tiny), vector(tiny, norm=4.0)
            assert serial.answer(tiny, asked, 8) == [each.ids for each in decode(tiny, asked, 8)]
            steered = decode(tiny, asked, 8, steering, [1.5] * len(asked))
            assert serial.answer(tiny, asked, 8, steering, 1.5) == [each.ids for each in steered]


def test_the_plain_statistic_is_heal_s(tiny: LanguageModel):
    asked, steering = prompts(tiny), vector(tiny, norm=4.0)
    said = [each.ids for each in decode(tiny, asked, 8, steering, [0.7] * len(asked))]
    on = completion_states(tiny, asked, said, intervention=steering, coefficient=0.7)
    off = completion_states(tiny, asked, said)
    expected = float(torch.quantile(torch.cat(token_divergences(tiny, on, off)), 0.95))
    assert expected > 0.01
    assert serial.path_statistic(tiny, steering, 0.7, asked, 8) == pytest.approx(expected, rel=1e-4)


def test_the_plain_search_finds_the_target_from_either_side_or_stops_at_a_jump_or_the_last_evaluation(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(serial, "path_statistic", lambda model, vector, c, *rest: 3 * c**2 / (1 + c**2))
    for start in (0.01, 1.0, 300.0):
        with case(start):
            c, value, evaluations = serial.calibrate(
                tiny, vector(tiny), [], 8, target=1.0, tolerance=0.01, start=start, max_evaluations=40
            )
            assert abs(value - 1.0) <= 0.01
            assert c == pytest.approx(math.sqrt(0.5), rel=0.02)
            assert evaluations < 25

    tried: list[float] = []

    def jump(model, steering, c: float, *rest) -> float:
        tried.append(c)
        return math.inf if c > 2.3 else 0.0 if c < 0.1 else c / 10

    monkeypatch.setattr(serial, "path_statistic", jump)
    c, value, evaluations = serial.calibrate(
        tiny, vector(tiny), [], 8, target=1.0, tolerance=0.05, start=0.02, max_evaluations=40
    )
    assert value == c / 10
    assert 2.3 / 1.01 < c <= 2.3
    assert evaluations == len(tried) < 40
    assert serial.calibrate(tiny, vector(tiny), [], 8, target=1.0, tolerance=0.05, start=0.02, max_evaluations=4) == (
        tried[3],
        tried[3] / 10,
        4,
    )


def test_a_plain_calibration_spends_the_budget(tiny: LanguageModel):
    asked, steering = prompts(tiny), vector(tiny)
    c, value, evaluations = serial.calibrate(
        tiny, steering, asked, 4, target=0.5, tolerance=0.1, start=1.0, max_evaluations=12
    )
    assert value == serial.path_statistic(tiny, steering, c, asked, 4)
    assert abs(value - 0.5) <= 0.1
    assert evaluations <= 12


def test_plain_tail_perplexities_are_heal_s(architectures: dict[str, LanguageModel]):
    for name, tiny in architectures.items():
        with case(name):
            asked, said = prompts(tiny), [*SAID[:-1], []]
            found = serial.tail_perplexities(tiny, asked, said)
            assert found == pytest.approx(tail_perplexities(tiny, asked, said), rel=1e-4, nan_ok=True)
            assert math.isnan(found[-1])


def test_plain_persona_log_ratios_are_the_difference_of_mean_log_probabilities(tiny: LanguageModel, tiny_trait: Trait):
    means = []
    for persona in (tiny_trait.positive, tiny_trait.negative):
        asked = [tiny.chat.ids(persona, text) for text in TEXTS]
        logprobs = token_logprobs(tiny, completion_states(tiny, asked, SAID[1:4]), SAID[1:4])
        means.append(torch.stack([logprob_N.mean() for logprob_N in logprobs]))
    found = serial.persona_log_ratios(tiny, tiny_trait, [*TEXTS, "x"], [*SAID[1:4], []])
    assert_near(torch.tensor(found[:3]) + means[1], means[0])
    assert math.isnan(found[3])


def test_plain_letter_masses_are_those_of_the_next_token(tiny: LanguageModel):
    asked = prompts(tiny)
    found = serial.letter_masses(tiny, asked)
    assert found.shape == (len(asked), 4)
    for row, p_K in zip(asked, found, strict=True):
        (h_ND,) = completion_states(tiny, [row], [[5]])
        expected = torch.softmax(tiny.logits(h_ND[0]), -1)[letter_ids(tiny, "ABCD")]
        torch.testing.assert_close(p_K, expected, rtol=1e-4, atol=1e-6)


def test_the_first_plain_step_has_the_loss_of_a_dense_oracle(tiny_folder: Path):
    model, accumulator = student(tiny_folder, rounds=1)
    learn(accumulator, 7)
    expected = float(dense_loss(model, accumulator, ROWS[:4], BARRIER).detach())
    without = float(dense_loss(model, accumulator, ROWS[:4], replace(BARRIER, strength=0.0)).detach())
    assert expected - without > 0.01  # the barrier is on
    found = serial.heal(
        model,
        accumulator,
        PAIRS[:4],
        epochs=1,
        learning_rate=1e-3,
        betas=(0.9, 0.95),
        accumulation=4,
        strength=BARRIER.strength,
        tau=BARRIER.tau,
    )
    assert found == [pytest.approx(expected, rel=1e-5)]


def test_plain_healing_lowers_the_loss_and_trains_current_alone(tiny_folder: Path):
    model, accumulator = student(tiny_folder, rounds=1)
    history = weights(accumulator, "history")
    losses = serial.heal(
        model,
        accumulator,
        PAIRS,
        epochs=8,
        learning_rate=1e-2,
        betas=(0.9, 0.95),
        accumulation=4,
        strength=0.3,
        tau=0.5,
    )
    assert len(losses) == 8 * 2
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])
    for name, weight in weights(accumulator, "history").items():
        assert torch.equal(weight, history[name])
    assert all(float(b.abs().max()) > 0 for b in weights(accumulator, "current.weight").values())
    assert not any(parameter.grad is not None for parameter in model.model.parameters())
