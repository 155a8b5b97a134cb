"""heal: turn activation steering into weights without the damage.

What a notebook needs is here, loaded when it is first used; docs/quickstart.ipynb shows it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

if TYPE_CHECKING:
    from heal.accumulator import Accumulator
    from heal.api.exporting import export_adapter, export_merged, export_vector
    from heal.api.measuring import Measurement, baseline, measure
    from heal.api.model import answer, load_model
    from heal.api.steering import calibrate, extract
    from heal.api.training import accumulate, generate, heal
    from heal.dose.calibrate import Calibration
    from heal.errors import RoundError, UserError
    from heal.generation.collect import Collection
    from heal.models.language_model import LanguageModel
    from heal.steering.load import load_intervention
    from heal.steering.vector import SteeringVector
    from heal.steps.baseline import Baseline
    from heal.steps.heal import Healed
    from heal.trait import Trait, load_trait, make_trait

# Where each name of the API is. None of them may be a module of heal: importing that would hide it.
_PLACES = {
    "load_model": "heal.api.model",
    "load_trait": "heal.trait",
    "make_trait": "heal.trait",
    "answer": "heal.api.model",
    "extract": "heal.api.steering",
    "calibrate": "heal.api.steering",
    "accumulate": "heal.api.training",
    "generate": "heal.api.training",
    "heal": "heal.api.training",
    "baseline": "heal.api.measuring",
    "measure": "heal.api.measuring",
    "export_adapter": "heal.api.exporting",
    "export_merged": "heal.api.exporting",
    "export_vector": "heal.api.exporting",
    "load_intervention": "heal.steering.load",
    "Accumulator": "heal.accumulator",
    "Baseline": "heal.steps.baseline",
    "Calibration": "heal.dose.calibrate",
    "Collection": "heal.generation.collect",
    "Healed": "heal.steps.heal",
    "LanguageModel": "heal.models.language_model",
    "Measurement": "heal.api.measuring",
    "RoundError": "heal.errors",
    "SteeringVector": "heal.steering.vector",
    "Trait": "heal.trait",
    "UserError": "heal.errors",
}

__all__ = [
    "Accumulator",
    "Baseline",
    "Calibration",
    "Collection",
    "Healed",
    "LanguageModel",
    "Measurement",
    "RoundError",
    "SteeringVector",
    "Trait",
    "UserError",
    "accumulate",
    "answer",
    "baseline",
    "calibrate",
    "export_adapter",
    "export_merged",
    "export_vector",
    "extract",
    "generate",
    "heal",
    "load_intervention",
    "load_model",
    "load_trait",
    "make_trait",
    "measure",
]

if not TYPE_CHECKING:  # a type checker would take every name for one that this function finds

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module 'heal' has no attribute '{name}'")
        from heal.environment import notices_ignored

        with notices_ignored():  # of the libraries that are imported now
            value = getattr(import_module(_PLACES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(["__version__", *__all__])
