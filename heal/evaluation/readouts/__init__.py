"""Readouts: each module of this package has one `measure(subject, answers) -> list[Signal]`.

A new readout is one new file here; `measure_all` finds it by itself.
"""

import importlib
import pkgutil
from collections.abc import Sequence

from heal.evaluation.results import Answer, Signal
from heal.evaluation.subject import Subject


def names() -> list[str]:
    """The readouts that there are, in the order they are measured."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def measure_all(subject: Subject, answers: Sequence[Answer]) -> list[Signal]:
    """The signals of every readout."""
    signals: list[Signal] = []
    for name in names():
        signals += importlib.import_module(f"{__name__}.{name}").measure(subject, answers)
    return signals
