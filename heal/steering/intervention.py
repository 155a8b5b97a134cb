"""What everything that shifts a model and takes a dose has in common."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from heal.models.language_model import LanguageModel

Coefficient = float | Sequence[float] | Tensor


@dataclass(frozen=True)
class Dosing:
    """How an intervention's coefficient acts, as far as the search for a dose must know.

    Attributes:
        vanishes: whether coefficient 0 does nothing.
        largest: the largest coefficient that means anything; None where there is no such bound.
        falling: whether the shift shrinks as the coefficient grows from 0.
    """

    vanishes: bool = True
    largest: float | None = None
    falling: bool = False


ADDITIVE = Dosing()


class Intervention(Protocol):
    """Anything that shifts a model and takes a dose (docs/method.md, Dose)."""

    @property
    def dosing(self) -> Dosing:
        """How its coefficient acts."""
        ...

    def applied(self, language_model: LanguageModel, coefficient: Coefficient) -> AbstractContextManager[None]:
        """A context in which the model is shifted by `coefficient` (one, or one for each row of the batch)."""
        ...


@dataclass(frozen=True)
class Signed:
    """An intervention whose coefficients are counted the other way round where `sign` is -1."""

    intervention: Intervention
    sign: int

    @property
    def dosing(self) -> Dosing:
        """That of the intervention: both signs are dosed by positive coefficients."""
        return self.intervention.dosing

    def applied(self, language_model: LanguageModel, coefficient: Coefficient) -> AbstractContextManager[None]:
        """The context of the intervention at `sign * coefficient` (at -0.0 where that is what it comes to)."""
        return self.intervention.applied(language_model, self.sign * torch.as_tensor(coefficient, dtype=torch.float32))
