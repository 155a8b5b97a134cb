"""The vectors of several traits as one: `sum_i c_i v_i` (docs/method.md, Several traits)."""

from collections.abc import Mapping

import torch

from heal.config import SteerConfig
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.steering.extract import extract_as
from heal.steering.vector import SteeringVector
from heal.trait import Trait


def extract_joint(
    settings: SteerConfig,
    language_model: LanguageModel,
    trait: Trait,
    coefficients: Mapping[str, float],
    progress: Progress = silent,
) -> SteeringVector:
    """The sum of the vectors of a trait's parts, each extracted from its own personas, site by site in float64.

    Args:
        settings: of a method that adds `c v` (`heal.steering.settings.check_joint`).
        language_model: the model as it stands.
        trait: several as one.
        coefficients: `c_i` by the name of each of them.
        progress: told (prompts done, prompts) of each in turn.

    Raises:
        UserError, RoundError: see `extract`.
    """
    vectors = {part.name: extract_as(settings, language_model, part, progress) for part in trait.parts}
    first = vectors[trait.parts[0].name]
    weighed = [(coefficients[name], vector.states) for name, vector in vectors.items()]
    sums = {
        site: torch.stack([c * states[site]["v"].double() for c, states in weighed]).sum(0) for site in first.states
    }
    return SteeringVector(
        {site: {"v": v_D.float()} for site, v_D in sums.items()},
        first.method,
        first.model,
        trait.name,
        settings=first.settings,
    )
