"""What holds for every divergence that the barrier can hold, and that a new one is one file."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from heal import choices
from heal.config import BarrierConfig
from heal.errors import UserError
from heal.healing import divergences as package
from heal.healing.divergences import divergence_named
from heal.keys import help_text
from heal.recipe import load_recipe
from heal.report.words import divergence_label, loss
from tests.cases import case
from tests.divergences import DIVERGENCES, HELD, NONE
from tests.students import learn, student
from tests.training import ONE_STEP, healed, with_barrier

NAME = "heal.healing.divergences"


def logits(seed: int, scale: float = 3.0, positions: int = 7, vocabulary: int = 50) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return scale * torch.randn(positions, vocabulary, generator=source, dtype=torch.float64)


def test_a_divergence_is_called_as_its_file_and_says_what_it_is():
    for divergence in DIVERGENCES:
        with case(divergence.name):
            assert divergence_named(divergence.name) is divergence
            assert choices.summary(NAME, divergence.name).startswith(f"{divergence.name}: ")
    for divergence in HELD:
        with case(divergence.name):
            assert "student" in divergence.label
            assert "base" in divergence.label.format(reference="base")


def test_a_name_that_is_no_file_is_an_error_that_names_the_nearest():
    with pytest.raises(UserError, match=r"'kl_rew': .*did you mean 'kl_rev'"):
        divergence_named("kl_rew")


def test_the_two_kl_are_torch_s_own_in_float64_one_way_and_the_other():
    student_NV, reference_NV = logits(1), logits(2)
    logp, logq = log_softmax(student_NV, -1), log_softmax(reference_NV, -1)
    for name, log_target, log_input in (("kl_rev", logp, logq), ("kl_fwd", logq, logp)):
        with case(name):
            expected = kl_div(log_input, log_target, reduction="none", log_target=True).sum(-1)
            torch.testing.assert_close(divergence_named(name).per_position(student_NV, reference_NV), expected)


def test_it_is_zero_with_no_gradient_at_equal_logits_and_above_zero_elsewhere():
    for divergence in HELD:
        for scale in (0.1, 3.0, 30.0):
            with case(divergence.name, scale):
                student_NV = logits(1, scale).float().requires_grad_()
                same_N = divergence.per_position(student_NV, student_NV.detach())
                same_N.sum().backward()
                assert torch.equal(same_N.detach(), torch.zeros(7))
                assert student_NV.grad is not None
                assert student_NV.grad.abs().max() < 1e-6
                for distance in (1e-4, 1e-2, 1.0):
                    other_NV = student_NV.detach() + distance * logits(2, 1.0).float()
                    assert (divergence.per_position(student_NV.detach(), other_NV) > 0).all()


def test_it_does_not_depend_on_a_shift_of_all_logits():
    for divergence in HELD:
        with case(divergence.name):
            plain = divergence.per_position(logits(1), logits(2))
            torch.testing.assert_close(divergence.per_position(logits(1) + 40, logits(2) - 25), plain)


def test_half_precision_logits_are_measured_in_float32():
    for divergence in HELD:
        with case(divergence.name):
            student_NV, reference_NV = logits(1).bfloat16(), logits(2).bfloat16()
            d_N = divergence.per_position(student_NV, reference_NV)
            assert d_N.dtype == torch.float32
            assert torch.equal(d_N, divergence.per_position(student_NV.float(), reference_NV.float()))


def test_its_gradient_is_that_of_finite_differences():
    reference_NV = logits(2, positions=3, vocabulary=9)
    for divergence in HELD:
        with case(divergence.name):
            student_NV = logits(1, positions=3, vocabulary=9).requires_grad_()
            torch.autograd.gradcheck(lambda x, d=divergence: d.per_position(x, reference_NV), (student_NV,))


def test_the_gradient_by_hand_is_autograd_s_of_the_definition():
    for divergence in HELD:
        if divergence.into_gradients is None:
            continue
        for scale in (0.1, 3.0, 30.0):
            with case(divergence.name, scale):
                student_NV, reference_NV = logits(1, scale).requires_grad_(), logits(2, scale)
                expected_N = divergence.per_position(student_NV, reference_NV)
                expected_N.sum().backward()
                logp_NV = log_softmax(student_NV.detach(), -1)
                p_NV = logp_NV.exp()
                kept_NV, overwritten_NV = p_NV.clone(), reference_NV.clone()
                d_N = divergence.into_gradients(logp_NV, p_NV, overwritten_NV)
                torch.testing.assert_close(d_N, expected_N.detach())
                torch.testing.assert_close(overwritten_NV, student_NV.grad)
                assert torch.equal(p_NV, kept_NV)


def test_none_is_no_divergence_at_all():
    assert torch.equal(NONE.per_position(logits(1), logits(2)), torch.zeros(7, dtype=torch.float64))
    assert not NONE.needs_reference
    assert loss(BarrierConfig("none")) == "CE alone"


# A new one, under a name that no divergence of heal's will have.

PLANTED = "jeffreys_of_a_test"
JEFFREYS = f'''"""{PLANTED}: half of both KL, symmetric."""

from heal.divergence import kl_divergence
from heal.healing.divergences import Divergence


def per_position(student_NV, reference_NV):
    return (kl_divergence(student_NV, reference_NV) + kl_divergence(reference_NV, student_NV)) / 2


DIVERGENCE = Divergence("{PLANTED}", "J(student, {{reference}})", per_position)
'''


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A divergence's file beside those that come with heal."""
    (tmp_path / f"{PLANTED}.py").write_text(JEFFREYS)
    monkeypatch.setattr(package, "__path__", package.__path__)  # put back as the list it was
    before = list(package.__path__)
    package.__path__.append(str(tmp_path))
    choices.names.cache_clear()
    yield
    package.__path__[:] = before
    choices.names.cache_clear()


@pytest.mark.usefixtures("planted")
def test_a_new_divergence_is_one_file(tiny_folder: Path):
    """It is trained with, offered by --help, accepted and refused by the recipe, and labelled in the report."""
    assert {PLANTED, *(divergence.name for divergence in DIVERGENCES)} == set(choices.names(NAME))
    assert f"({'|'.join(choices.names(NAME))})" in help_text()
    assert f"{PLANTED}: half of both KL, symmetric." in help_text()
    assert load_recipe([f"heal.barrier.divergence={PLANTED}"]).heal.barrier.divergence == PLANTED
    with pytest.raises(UserError, match=f"did you mean '{PLANTED}'"):
        load_recipe([f"heal.barrier.divergence={PLANTED.replace('ff', 'f')}"])
    assert "D the rmse of J(student, base)" in loss(BarrierConfig(PLANTED))
    assert divergence_label(BarrierConfig(PLANTED, reference="previous")) == "J(student, the student before the round)"
    logs = {}
    for name in (PLANTED, "kl_rev", "kl_fwd"):
        model, accumulator = student(tiny_folder, rounds=1)
        learn(accumulator, 1)
        config = with_barrier(ONE_STEP, divergence=name, aggregate="mean")
        logs[name] = healed(model, accumulator, config)[0].values
    halves = (logs["kl_rev"]["D_mean"] + logs["kl_fwd"]["D_mean"]) / 2
    assert logs[PLANTED]["D_mean"] == pytest.approx(halves, rel=1e-5)
    assert math.isfinite(logs[PLANTED]["grad_norm"])
    assert logs[PLANTED]["grad_norm"] not in (logs["kl_rev"]["grad_norm"], logs["kl_fwd"]["grad_norm"])
