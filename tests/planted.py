"""Activations with a planted direction, and the steering methods fitted to them."""

import torch
from torch import Tensor

from heal.config import SteerConfig
from heal.steering.extract import fit
from heal.steering.method import State
from heal.steering.methods import METHODS
from heal.steering.settings import method_settings
from heal.steering.vector import _shifter

WIDTH, PAIRS = 24, 300


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted_pairs(noise: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """A unit direction, and activations that differ along it, in some pairs more than in others."""
    direction_D = draw(WIDTH) / draw(WIDTH).norm()
    shared_PD = 2 * draw(PAIRS, WIDTH, seed=1) + 3 * draw(WIDTH, seed=2)
    strength_P1 = 4 + draw(PAIRS, 1, seed=3)
    return (
        direction_D,
        shared_PD + strength_P1 * direction_D + noise * draw(PAIRS, WIDTH, seed=4),
        shared_PD + noise * draw(PAIRS, WIDTH, seed=5),
    )


def fitted(name: str, positive_PD: Tensor, negative_PD: Tensor, **settings) -> State:
    """A method's state; those that need weights get those of a random Linear with a bias."""
    method = METHODS[name]
    weight_DI = draw(WIDTH, 2 * WIDTH, seed=6)
    bias_D = None if method.basis == "band" else draw(WIDTH, seed=7)
    basis = {} if method.basis == "none" else {"gram_DD": weight_DI.double() @ weight_DI.double().T, "bias_D": bias_D}
    given = method_settings(SteerConfig(method=name, pairs=PAIRS, **settings))
    return fit(method, positive_PD, negative_PD, given, basis)


def shifted(name: str, state: State, h_BTD: Tensor, c: float | list[float]) -> Tensor:
    """What a model with the method at work would go on with."""
    return _shifter(METHODS[name], state, torch.tensor(c).reshape(-1, 1, 1))(h_BTD)


def on_plants(name: str, **settings) -> State:
    return fitted(name, *planted_pairs()[1:], **settings)


def positions(rows: int = 3, length: int = 5) -> Tensor:
    return 3 * draw(rows, length, WIDTH, seed=8) + draw(WIDTH, seed=2)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.double(), b.double(), dim=-1).mean())


def components(state: State, h_BTD: Tensor) -> Tensor:
    return (h_BTD * state["v"]).sum(-1)
