"""What everything that shifts a model and takes a dose has in common."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from heal.models.language_model import LanguageModel

Coefficient = float | Sequence[float] | Tensor


class Intervention(Protocol):
    """Anything that shifts a model and takes a dose (SPEC: words)."""

    def applied(self, language_model: LanguageModel, coefficient: Coefficient) -> AbstractContextManager[None]:
        """A context in which the model is shifted by `coefficient` (one, or one for each row of the batch)."""
        ...
