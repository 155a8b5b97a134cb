"""The penalty on the operator norm of a round's update."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heal.accumulator import CURRENT, Accumulator
from heal.healing.loss import squared_operator_norm
from tests.students import learn, student
from tests.training import ONE_STEP, close, healed, with_barrier

pytestmark = pytest.mark.usefixtures("quick_collections")


# The operator norm.


def full_norm(accumulator: Accumulator) -> Tensor:
    """Mean over layers of the squared spectral norm, by the SVD of the full update."""
    squares = []
    for layer in accumulator.current_layers():
        update = layer.scaling[CURRENT] * layer.lora_B[CURRENT].weight @ layer.lora_A[CURRENT].weight
        squares.append(torch.linalg.matrix_norm(update, ord=2).square())
    return torch.stack(squares).mean()


def test_the_operator_norm_is_that_of_the_full_update(tiny_folder: Path):
    _, accumulator = student(tiny_folder, rounds=1)
    for seed in range(5):
        learn(accumulator, seed)
        torch.testing.assert_close(squared_operator_norm(accumulator), full_norm(accumulator), rtol=1e-5, atol=0)


def test_its_gradient_is_that_through_the_full_svd(tiny_folder: Path):
    _, accumulator = student(tiny_folder)
    learn(accumulator, 0)
    parameters = accumulator.trainable()
    both = [
        dict(zip(parameters, torch.autograd.grad(norm(accumulator), list(parameters.values())), strict=True))
        for norm in (squared_operator_norm, full_norm)
    ]
    close(both[0], both[1], 1e-5)


def test_an_untrained_update_has_no_operator_norm_and_a_finite_gradient(tiny_folder: Path):
    _, accumulator = student(tiny_folder)
    norm = squared_operator_norm(accumulator)
    norm.backward()
    assert norm.item() == 0.0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in accumulator.trainable().values())


def test_the_penalty_lowers_the_operator_norm_and_is_logged(tiny_folder: Path):
    norms = []
    for weight in (0.0, 10.0):
        model, accumulator = student(tiny_folder)
        config = with_barrier(replace(ONE_STEP, epochs=8, learning_rate=1e-2), operator_norm=weight, divergence="none")
        log = healed(model, accumulator, config)
        norms.append(full_norm(accumulator).item())
        assert all(("operator_norm_penalty" in entry.values) == (weight > 0) for entry in log)
    assert norms[1] < 0.5 * norms[0]
