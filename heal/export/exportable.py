"""What an export is made from, how it is asked for, and what it came to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from heal.accumulator import Accumulator
from heal.config import ModelConfig
from heal.export.base import Base
from heal.models.agreement import Agreement
from heal.models.language_model import LanguageModel
from heal.trait import Trait

MAX_KL = 0.1  # nats per token at p95: a tenth of what a round's dose spends by default


@dataclass(frozen=True)
class Settings:
    """How a student is exported.

    Attributes:
        gate: `c_history`, by which the whole update is multiplied.
        rank: of an adapter that is truncated by SVD; None: exact.
        dtype: of a merged model; None: the student's.
        max_kl: p95 of KL(student || export), nats per token, above which it is refused.
        base: what the export names as its base; None: what the student's was loaded from.
    """

    gate: float = 1.0
    rank: int | None = None
    dtype: torch.dtype | None = None
    max_kl: float = MAX_KL
    base: str | None = None


AS_TRAINED = Settings()


@dataclass(frozen=True)
class Kept:
    """What a dtype keeps of an update that is merged into weights: M merged, W the base, R(W) the base in that dtype.

    Attributes:
        survives: `<M - R(W), dW> / ||dW||^2` over all layers of the update together; 1: all of it.
        error: `||M - W - dW|| / ||dW||` (Frobenius), the rounding of the base among it; 0: exact.
    """

    survives: float
    error: float

    def __str__(self) -> str:
        return (
            f"{self.survives:.1%} of the update survives the rounding of the weights, whose error is "
            f"{self.error:.2g} times the update (Frobenius norms)"
        )


@dataclass(frozen=True)
class Facts:
    """What an export came to.

    Attributes:
        base: what it belongs to.
        gate: of the update.
        dtype: of its weights.
        agreement: with the student at the same gate, over the probe prompts.
        rank: of the adapter; None for a merged model.
        lost: relative Frobenius error of a truncated adapter; None when exact.
        kept: of a merged model whose weights are rounded; None otherwise.
        quant: type of the weights in a GGUF file; None for another export.
    """

    base: Base
    gate: float
    dtype: torch.dtype
    agreement: Agreement
    rank: int | None = None
    lost: float | None = None
    kept: Kept | None = None
    quant: str | None = None

    @property
    def weights(self) -> str:
        """The name of the dtype, or of a GGUF file's type."""
        return self.quant or str(self.dtype).removeprefix("torch.")


Card = Callable[[Facts], str]  # the README of an export


class Exportable(Protocol):
    """A student, of a run or not."""

    @property
    def config(self) -> ModelConfig:
        """How its base is loaded."""
        ...

    @property
    def trait(self) -> Trait:
        """What it was trained on; its prompts and personas are what an export is compared on."""
        ...

    @property
    def model(self) -> LanguageModel: ...

    @property
    def accumulator(self) -> Accumulator: ...


@dataclass(frozen=True)
class Unrecorded:
    """A student that no run folder describes."""

    trait: Trait
    accumulator: Accumulator

    @property
    def model(self) -> LanguageModel:
        return self.accumulator.language_model

    @property
    def config(self) -> ModelConfig:
        return self.model.config
