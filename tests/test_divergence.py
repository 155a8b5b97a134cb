"""KL per position: right, never negative, finite, with the right gradient."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from heal import divergence
from heal.divergence import kl_divergence
from tests.cases import case

INF = float("inf")
SIZES = [(1, 2), (7, 50), (3, 5000)]


def drawn(positions: int, vocabulary: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed))


def reference(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """torch's own KL in float64."""
    logp, logq = log_softmax(logits_p.double(), -1), log_softmax(logits_q.double(), -1)
    return kl_div(logq, logp, reduction="none", log_target=True).sum(-1)


def gradients(loss, logits_p: Tensor, logits_q: Tensor) -> tuple[Tensor, Tensor]:
    p, q = logits_p.clone().requires_grad_(), logits_q.clone().requires_grad_()
    loss(p, q).sum().backward()
    assert p.grad is not None
    assert q.grad is not None
    return p.grad, q.grad


def test_it_equals_torch_s_kl_in_float64_and_half_precision_is_measured_in_float32():
    for size in SIZES:
        for scale in [0.1, 1.0, 5.0, 15.0]:
            with case(size, scale):
                p, q = drawn(*size, scale, seed=1), drawn(*size, scale, seed=2)
                torch.testing.assert_close(kl_divergence(p, q).double(), reference(p, q), rtol=2e-5, atol=1e-7)

    p, q = drawn(4, 50, seed=1).bfloat16(), drawn(4, 50, seed=2).bfloat16()
    assert kl_divergence(p, q).dtype == torch.float32
    assert torch.equal(kl_divergence(p, q), kl_divergence(p.float(), q.float()))


def test_it_is_accurate_near_zero_where_the_plain_form_is_not():
    for distance in [1e-2, 1e-3, 1e-4]:
        with case(distance):
            p = drawn(20, 5000)
            q = p + distance * drawn(20, 5000, 1.0, seed=1)
            exact = reference(p, q)
            ours = ((kl_divergence(p, q).double() - exact).abs() / exact).max()
            logp, logq = log_softmax(p, -1), log_softmax(q, -1)
            plain = (((logp.exp() * (logp - logq)).sum(-1).double() - exact).abs() / exact).max()
            assert ours < 0.05
            assert ours < plain / 10


def test_rows_are_measured_in_blocks_without_a_seam(monkeypatch: pytest.MonkeyPatch):
    p, q = drawn(37, 50, seed=1), drawn(37, 50, seed=2)
    whole = kl_divergence(p, q)
    for elements in (1, 50, 499, 500, 37 * 50 - 1):
        with case(elements):
            monkeypatch.setattr(divergence, "_CACHED", elements)
            assert len(list(divergence.row_blocks(p))) > 1
            assert torch.equal(kl_divergence(p, q), whole)


def test_it_is_never_negative_exactly_zero_at_equal_logits_and_blind_to_a_shift_of_all():
    for distance in [0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-1, 1e1]:
        with case(distance):
            p = drawn(200, 500)
            q = p + distance * drawn(200, 500, 1.0, seed=1)
            assert (kl_divergence(p, q) >= 0).all()

    p = drawn(20, 500)
    p[3, 7] = -INF
    assert torch.equal(kl_divergence(p, p.clone()), torch.zeros(20))

    p, q = drawn(20, 500, seed=1), drawn(20, 500, seed=2)
    torch.testing.assert_close(kl_divergence(p + 40, q - 25), kl_divergence(p, q), rtol=1e-4, atol=1e-6)

    nothing = torch.empty(0, 50)
    assert kl_divergence(nothing, nothing).shape == (0,)


def test_tokens_that_both_or_p_alone_exclude_are_no_obstacle_and_one_that_only_q_excludes_is_infinitely_far():
    p, q = drawn(5, 50, seed=1), drawn(5, 50, seed=2)
    wide_p, wide_q = (torch.cat([x, torch.full((5, 3), -INF)], dim=-1) for x in (p, q))
    torch.testing.assert_close(kl_divergence(wide_p, wide_q), kl_divergence(p, q))

    p, q = drawn(5, 50, seed=1), drawn(5, 50, seed=2)
    p[:, ::3] = -INF
    logp, logq = log_softmax(p.double(), -1), log_softmax(q.double(), -1)
    exact = torch.where(p == -INF, 0.0, logp.exp() * (logp - logq)).sum(-1)
    torch.testing.assert_close(kl_divergence(p, q).double(), exact, rtol=1e-5, atol=1e-7)

    p, q = drawn(2, 50, seed=1), drawn(2, 50, seed=2)
    q[0, 4] = -INF
    found = kl_divergence(p, q)
    assert found[0] == INF
    assert found[1].isfinite()


def test_extreme_logits_neither_overflow_nor_turn_nan_nor_show_a_seam():
    for size in [50.0, 1e3, 1e5, 1e30]:
        with case(size):
            p = torch.tensor([[size, 0.0, -size], [-size, size, 0.0], [0.0, 0.0, size]])
            for q in (p.flip(-1), -p, torch.zeros_like(p)):
                for found, exact in ((kl_divergence(p, q), reference(p, q)), (kl_divergence(q, p), reference(q, p))):
                    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)

    for gap in [29.0, 29.999, 30.0, 30.001, 31.0, 80.0, 120.0]:
        with case(gap):
            p, q = torch.tensor([[0.0, -gap, 1.0]]), torch.tensor([[0.0, 1.0, 1.0]])
            # A logarithm near `gap` is rounded by up to 120 times 6e-8, and its exponential by as much of itself.
            torch.testing.assert_close(kl_divergence(p, q).double(), reference(p, q), rtol=5e-5, atol=0)


def test_its_gradients_are_those_of_the_plain_form_and_vanish_at_equal_logits():
    for size in SIZES:
        for scale in [0.1, 1.0, 5.0]:
            with case(size, scale):
                p, q = drawn(*size, scale, seed=1), drawn(*size, scale, seed=2)
                for ours, exact in zip(gradients(kl_divergence, p, q), gradients(reference, p, q), strict=True):
                    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-6)

    p = drawn(10, 500)
    for gradient in gradients(kl_divergence, p, p):
        assert gradient.abs().max() < 1e-7


def test_gradients_stay_finite_with_excluded_tokens_and_extreme_logits():
    for excluded in ["p", "both"]:
        with case(excluded):
            p, q = drawn(5, 50, seed=1), drawn(5, 50, seed=2)
            p[:, ::3] = -INF
            if excluded == "both":
                q[:, ::3] = -INF
            for gradient in gradients(kl_divergence, p, q):
                assert gradient.isfinite().all()

    for size in [50.0, 1e3, 1e5]:
        with case(size):
            p = torch.tensor([[size, 0.0, -size], [-size, size, 0.0]])
            q = p.flip(-1)
            for ours, exact in zip(gradients(kl_divergence, p, q), gradients(reference, p, q), strict=True):
                torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)
