"""The barrier's two terms: losses per position, and their aggregation per completion."""

import copy
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from heal.config import BarrierConfig
from heal.errors import UserError
from heal.healing.aggregates import AGGREGATES, RMSE_EPS, aggregate_named
from heal.healing.barrier import Barrier, aggregate, lambda_for_round, position_losses
from heal.healing.divergences import Divergence, divergence_named
from heal.models.batching import Batching
from heal.models.language_model import LanguageModel
from heal.studies.bench.timing import peak_bytes
from tests.cases import case
from tests.divergences import DIVERGENCES, HELD, NONE
from tests.tiny import load

KL_FWD, KL_REV = divergence_named("kl_fwd"), divergence_named("kl_rev")


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states(language_model: LanguageModel, count: int, seed: int = 0) -> Tensor:
    """Hidden states of about the size that the model's own have."""
    width = language_model.model.config.get_text_config().hidden_size
    return torch.randn(count, width, generator=source(seed))


def dense_logprobs(language_model: LanguageModel, h_ND: Tensor) -> Tensor:
    """Float64 log-probabilities by the model's own head, soft cap included."""
    logits = language_model.model.get_output_embeddings()(h_ND).double()
    cap = getattr(language_model.model.config.get_text_config(), "final_logit_softcapping", None)
    return torch.log_softmax(logits if cap is None else cap * torch.tanh(logits / cap), -1)


def dense_kl(logp: Tensor, logq: Tensor) -> Tensor:
    return kl_div(logq, logp, reduction="none", log_target=True).sum(-1)


def test_cross_entropy_is_that_of_a_dense_log_softmax(architectures: dict[str, LanguageModel]):
    for name, architecture in architectures.items():
        with case(name):
            h, target = states(architecture, 9), torch.randint(0, 256, (9,), generator=source())
            nll, _ = position_losses(architecture, h, target, None, NONE)
            expected = -dense_logprobs(architecture, h)[range(9), target]
            torch.testing.assert_close(nll.double(), expected, rtol=1e-5, atol=1e-5)


def test_forward_kl_is_from_reference_to_student_and_reverse_kl_the_other_way(architectures: dict[str, LanguageModel]):
    for name, architecture in architectures.items():
        h, reference = states(architecture, 9), states(architecture, 9, seed=1)
        student, base = dense_logprobs(architecture, h), dense_logprobs(architecture, reference)
        for divergence, expected in ((KL_FWD, dense_kl(base, student)), (KL_REV, dense_kl(student, base))):
            with case(name, divergence.name):
                _, kl = position_losses(architecture, h, torch.zeros(9, dtype=torch.long), reference, divergence)
                torch.testing.assert_close(kl.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_student_that_lost_one_of_the_reference_s_two_answers_pays_much_more_forward_than_reverse(tiny_folder: Path):
    """Mass-covering against mode-seeking: the reference says token 5 or 6 alike, the student 5 alone."""
    model = load(tiny_folder)
    with torch.no_grad():
        head_VD = model.model.get_output_embeddings().weight
        head_VD.zero_()
        head_VD[5, 0] = head_VD[6, 1] = 15.0
    student, reference = torch.zeros(2, 1, head_VD.shape[1])
    student[0, 0] = reference[0, 0] = reference[0, 1] = 1.0
    forward, reverse = (
        float(position_losses(model, student, torch.tensor([5]), reference, divergence)[1])
        for divergence in (KL_FWD, KL_REV)
    )
    assert reverse == pytest.approx(math.log(2), abs=0.01)
    assert forward == pytest.approx(7.5 - math.log(2), abs=0.01)


def test_equal_states_have_no_divergence_and_no_gradient_from_it(tiny: LanguageModel):
    for divergence in HELD:
        with case(divergence.name):
            h = states(tiny, 9).requires_grad_()
            _, kl = position_losses(tiny, h, torch.zeros(9, dtype=torch.long), h.detach().clone(), divergence)
            kl.sum().backward()
            assert torch.equal(kl.detach(), torch.zeros(9))
            assert h.grad is not None
            assert h.grad.abs().max() < 1e-5


def loss_and_gradient(
    language_model: LanguageModel, divergence: Divergence, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Both losses at nine positions and the gradient of a weighted sum of them in the states."""
    h = states(language_model, 9).to(dtype).requires_grad_()
    target, weight = torch.randint(0, 256, (9,), generator=source()), torch.rand(2, 9, generator=source(2))
    reference = states(language_model, 9, seed=1).to(dtype)
    found = torch.stack(position_losses(language_model, h, target, reference, divergence))
    (weight * found).sum().backward()
    assert h.grad is not None
    return found.detach(), h.grad


def test_gradients_in_the_states_are_those_of_the_dense_form(architectures: dict[str, LanguageModel]):
    """By hand where a divergence has that, and by autograd of its definition where it has nothing else."""
    for name, architecture in architectures.items():
        with case(name):
            for divergence in (*DIVERGENCES, *(replace(divergence, into_gradients=None) for divergence in HELD)):
                with case(divergence.name, divergence.into_gradients):
                    model = architecture
                    h, reference = states(model, 9).requires_grad_(), states(model, 9, seed=1)
                    target, weight = (
                        torch.randint(0, 256, (9,), generator=source()),
                        torch.rand(2, 9, generator=source(2)),
                    )
                    logp, logr = dense_logprobs(model, h), dense_logprobs(model, reference)
                    dense = divergence.per_position(logp, logr)
                    (weight[0] * -logp[range(9), target] + weight[1] * dense).sum().backward()
                    assert h.grad is not None
                    torch.testing.assert_close(loss_and_gradient(model, divergence)[1], h.grad, rtol=1e-4, atol=1e-4)


def test_the_size_of_the_chunks_decides_nothing(
    architectures: dict[str, LanguageModel], monkeypatch: pytest.MonkeyPatch
):
    for name, architecture in architectures.items():
        with case(name):
            for divergence in DIVERGENCES:
                expected = loss_and_gradient(architecture, divergence)
                for chunk in (1, 2, 5, 9):
                    with case(divergence.name, chunk), monkeypatch.context() as patch:
                        patch.setattr(LanguageModel, "head_positions", chunk)
                        for part, whole in zip(loss_and_gradient(architecture, divergence), expected, strict=True):
                            torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences_in_float64(
    architectures: dict[str, LanguageModel], monkeypatch: pytest.MonkeyPatch
):
    for name, architecture in architectures.items():
        with case(name):
            monkeypatch.setattr(LanguageModel, "head_positions", 2)
            model = replace(architecture, model=copy.deepcopy(architecture.model).double())
            h, reference = states(model, 5).double().requires_grad_(), states(model, 5, seed=1).double()
            target = torch.randint(0, 256, (5,), generator=source())
            for divergence in DIVERGENCES:
                with case(divergence.name):
                    losses = partial(
                        position_losses, model, target_N=target, reference_ND=reference, divergence=divergence
                    )
                    torch.autograd.gradcheck(losses, (h,), atol=1e-6, rtol=1e-5)


def test_more_memory_for_the_head_means_larger_chunks_and_the_losses_keep_to_it(tiny: LanguageModel, tiny_folder: Path):
    sizes = [replace(tiny, batching=Batching(head_bytes=size)).head_positions for size in (1, 10**6, 10**7)]
    assert sizes[0] == 1
    assert sizes[1] < sizes[2] < 10**7 / (4 * 272)

    model = replace(load(tiny_folder, torch.bfloat16), batching=Batching(head_bytes=2**24))
    count = model.head_positions
    h, reference = (states(model, count, seed).bfloat16() for seed in (0, 1))
    target = torch.zeros(count, dtype=torch.long)
    for divergence in (KL_FWD, KL_REV):
        with case(divergence.name):
            peak = peak_bytes(lambda d=divergence: position_losses(model, h, target, reference, d), "cpu")
            assert 0.9 < peak / 2**24 < 1.3


def test_bfloat16_states_get_a_bfloat16_gradient_near_the_exact_one(tiny_folder: Path):
    for divergence in DIVERGENCES:
        with case(divergence.name):
            losses, gradient = loss_and_gradient(load(tiny_folder, torch.bfloat16), divergence, torch.bfloat16)
            exact_losses, exact = loss_and_gradient(load(tiny_folder), divergence)
            assert losses.dtype == torch.float32
            assert gradient.dtype == torch.bfloat16
            torch.testing.assert_close(losses, exact_losses, rtol=0.05, atol=0.05)
            assert (gradient.float() - exact).norm() < 0.03 * exact.norm()


def test_neither_the_frozen_head_nor_the_reference_gets_a_gradient_and_looking_twice_gives_the_same(
    tiny: LanguageModel,
):
    loss_and_gradient(tiny, KL_REV)
    assert all(weight.grad is None for weight in tiny.model.parameters())

    h, reference = states(tiny, 3).requires_grad_(), states(tiny, 3, seed=1).requires_grad_()
    position_losses(tiny, h, torch.zeros(3, dtype=torch.long), reference, KL_REV)[1].sum().backward()
    assert reference.grad is None

    h = states(tiny, 9).requires_grad_()
    nll, kl = position_losses(tiny, h, torch.zeros(9, dtype=torch.long), states(tiny, 9, seed=1), KL_REV)
    first = torch.autograd.grad(kl.sum(), h, retain_graph=True)[0]
    torch.autograd.grad(nll.sum(), h, retain_graph=True)
    assert torch.equal(torch.autograd.grad(kl.sum(), h)[0], first)


def test_without_divergence_the_barrier_is_zero_and_a_divergence_requires_a_reference(tiny: LanguageModel):
    kl = position_losses(tiny, states(tiny, 4), torch.zeros(4, dtype=torch.long), states(tiny, 4, seed=1), NONE)[1]
    assert torch.equal(kl, torch.zeros(4))

    with pytest.raises(ValueError, match="kl_rev needs the reference"):
        position_losses(tiny, states(tiny, 4), torch.zeros(4, dtype=torch.long), None, KL_REV)


# Aggregation.


def one(kl: Tensor, name: str) -> float:
    return float(aggregate(kl, torch.zeros(len(kl), dtype=torch.long), 1, AGGREGATES[name])[0])


def test_each_aggregate_is_its_formula_and_a_short_loop_passes_under_the_mean_and_fires_the_rmse():
    kl = torch.rand(53, generator=source()) * 3
    assert one(kl, "mean") == pytest.approx(float(kl.mean()))
    assert one(kl, "rmse") == pytest.approx(math.sqrt(float(kl.square().mean()) + RMSE_EPS**2) - RMSE_EPS)
    assert one(kl, "p95") == pytest.approx(float(torch.quantile(kl, 0.95)))
    assert one(kl, "max") == float(kl.max())

    for name in AGGREGATES:
        with case(name):
            assert one(torch.full((7,), 0.8), name) == pytest.approx(0.8, abs=1e-5)

    for seed in range(50):
        kl = torch.rand(11, generator=source(seed)).square() * 5
        assert one(kl, "mean") <= one(kl, "rmse") + 1e-5 <= one(kl, "max") + 2e-5

    # Four tokens of a loop in a completion of sixty, everything else untouched.
    kl, tau = torch.zeros(60), 0.5
    kl[30:34] = 5.75
    assert one(kl, "mean") == pytest.approx(0.383, abs=1e-3)
    assert one(kl, "rmse") == pytest.approx(1.485, abs=1e-3)
    assert one(kl, "mean") < tau < one(kl, "rmse")


def test_no_divergence_anywhere_is_exactly_zero_with_a_gradient_of_zero():
    for name, how in AGGREGATES.items():
        with case(name):
            kl = torch.zeros(6, requires_grad=True)
            d = aggregate(kl, torch.tensor([0, 0, 0, 1, 1, 1]), 2, how)
            torch.relu(d - 0.5).sum().backward()
            assert torch.equal(d.detach(), torch.zeros(2))
            assert kl.grad is not None
            assert torch.equal(kl.grad, torch.zeros(6))

    kl = torch.zeros(6, requires_grad=True)
    aggregate(kl, torch.zeros(6, dtype=torch.long), 1, AGGREGATES["rmse"]).sum().backward()
    assert kl.grad is not None
    assert torch.equal(kl.grad, torch.zeros(6))


def test_an_aggregate_depends_on_its_own_completion_alone_whatever_the_order_of_positions():
    # Together, apart, or in another order: the same D for each completion.
    for name, how in AGGREGATES.items():
        with case(name):
            parts = [torch.rand(n, generator=source(n)) * 4 for n in (1, 5, 12, 3, 40)]
            alone = torch.tensor([one(part, name) for part in parts])
            for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
                kl = torch.cat([parts[index] for index in order])
                owner = torch.cat([torch.full((len(parts[index]),), line) for line, index in enumerate(order)])
                torch.testing.assert_close(aggregate(kl, owner, 5, how), alone[order], rtol=1e-6, atol=1e-6)

    for name, how in AGGREGATES.items():
        with case(name):
            kl, owner = torch.rand(60, generator=source()), torch.arange(60) % 4
            shuffle = torch.randperm(60, generator=source(1))
            torch.testing.assert_close(aggregate(kl[shuffle], owner[shuffle], 4, how), aggregate(kl, owner, 4, how))


def test_half_precision_divergences_are_aggregated_in_float32():
    for name, how in AGGREGATES.items():
        with case(name):
            kl, owner = torch.rand(30, generator=source()).bfloat16(), torch.arange(30) // 15
            found = aggregate(kl, owner, 2, how)
            assert found.dtype == torch.float32
            assert torch.equal(found, aggregate(kl.float(), owner, 2, how))


def test_gradients_of_the_aggregates_are_those_of_the_dense_formulas():
    kl = (torch.rand(23, generator=source()) * 3).double()
    formulas = {
        "mean": lambda x: x.mean(),
        "rmse": lambda x: (x.square().mean() + RMSE_EPS**2).sqrt() - RMSE_EPS,
        "p95": lambda x: torch.quantile(x, 0.95),
        "max": lambda x: x.max(),
    }
    for name, formula in formulas.items():
        with case(name):
            ours, exact = kl.float().requires_grad_(), kl.clone().requires_grad_()
            aggregate(ours, torch.zeros(23, dtype=torch.long), 1, AGGREGATES[name]).sum().backward()
            formula(exact).backward()
            assert ours.grad is not None
            assert exact.grad is not None
            torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)


def test_the_strength_of_a_round_follows_the_power_from_the_first_on():
    for power in [-0.5, 0.0, 1.0]:
        with case(power):
            assert lambda_for_round(0.3, power, 0) == 0.3

    assert [lambda_for_round(0.3, 0.0, r) for r in range(5)] == [0.3] * 5
    assert [lambda_for_round(2.0, -0.5, r) for r in range(4)] == pytest.approx([2.0, 2 / 2**0.5, 2 / 3**0.5, 1.0])


def test_the_barrier_of_a_round_is_what_the_recipe_s_settings_mean():
    settings = BarrierConfig("kl_fwd", "max", strength=0.4, power=1.0, tau=0.2, operator_norm=0.01)
    assert Barrier.of_round(settings, 2) == Barrier(KL_FWD, AGGREGATES["max"], 0.4 * 3, 0.2, 0.01)
    with pytest.raises(UserError, match=r"'kl_rew': .*did you mean 'kl_rev'"):
        Barrier.of_round(BarrierConfig("kl_rew"), 0)
    with pytest.raises(UserError, match=r"'rms': no such aggregate; did you mean 'rmse'"):
        aggregate_named("rms")


def test_a_strength_that_follows_D_rises_above_tau_falls_below_it_and_is_never_negative():
    for tau in (0.1, 0.5, 3.0):
        with case(tau):
            barrier = Barrier.of_round(BarrierConfig(strength=None, tau=tau), 3)
            assert barrier == Barrier.of_round(BarrierConfig(strength=None, tau=tau), 0)
            assert barrier.after(tau, 0.5) == barrier
            assert barrier.after(0.5 * tau, 0.0) == barrier  # it did nothing
            last = barrier
            for above in (1.01, 1.5, 4.0):
                risen = barrier.after(above * tau, 1.0)
                assert risen.strength > last.strength
                last = risen
            fallen = [last := last.after(below * tau, 0.25) for below in (0.99, 0.5, 0.1) * 20]
            strengths = [took.strength for took in fallen]
            assert all(after < before or before == after == 0 for before, after in pairwise(strengths))
            assert strengths[-1] == 0
            assert fallen[-1].after(2 * tau, 1.0).strength > 0
            assert Barrier.of_round(BarrierConfig(strength=None, tau=tau), 4, 2.5) == replace(barrier, strength=2.5)
    for settings in (BarrierConfig(strength=0.7), BarrierConfig("none", strength=None)):
        with case(settings):
            fixed = Barrier.of_round(settings, 0)
            assert fixed.after(9.0, 1.0) == fixed.after(0.1, 0.5) == fixed
