"""From a trait to a vector, and from a vector to its dose."""

import warnings
from typing import Any

from heal.api.keywords import Keywords
from heal.config import Recipe
from heal.dose.calibrate import Calibration, Goal
from heal.dose.find import Prompts, find_dose, off_target
from heal.evaluation.subject import Gates
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.run.open import fitting
from heal.steering.extract import extract_as
from heal.steering.settings import check_settings, methods_of
from heal.steering.vector import SteeringVector
from heal.steering.weights import WeightDifference
from heal.trait import Trait

_STEER = Keywords("steer")
_CALIBRATION = Keywords("calibration", without=("reference",))


@_STEER.documented
def extract(model: LanguageModel, trait: Trait, *, progress: Progress = silent, **keywords: Any) -> SteeringVector:
    """The contrast of the trait's two personas in the model as it stands.

    Activations are read at the last prompt token (the assistant tag) of `pairs` embedded contexts under either persona
    as system prompt. `mean_diff`: `v_l = mean(h_l | positive) - mean(h_l | negative)`, one float32 direction of the
    hidden size for each block of `band`, in units of the residual stream. docs/method.md, Steering.

    Args:
        model: the model; a student's vector is that of the student.
        trait: whose personas are contrasted.
        progress: told (prompts done, prompts).

    Returns:
        the vector, without a dose: `calibrate` finds it. `vector.directions` maps each block to its direction `[D]`;
        `with vector.applied(model, c):` steers every forward pass inside, at every position; `vector.save(path)`.

    Raises:
        UserError: no such method or setting, or a model that the method does not know.
        RoundError: activations that are not finite, or that do not say where to steer.
    """
    settings = _STEER.recipe(extract, keywords).steer
    check_settings(settings, methods_of(settings))
    return extract_as(settings, model, trait, progress)


@_CALIBRATION.documented
def calibrate(
    model: LanguageModel,
    vector: SteeringVector | WeightDifference,
    trait: Trait,
    *,
    off: Gates | None = None,
    start: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
    **keywords: Any,
) -> Calibration:
    """The coefficient `c_star` at which a vector spends `target` nats: the 95th percentile of the per-token KL.

    Greedy paths are decoded under the vector and scored with it on and off; `KL_t = sum_v p_on (log p_on - log p_off)`,
    nats per token, float32, full vocabulary, pooled over prompts and positions. docs/method.md, Dose.

    Args:
        model: the model as it stands.
        vector: what is dosed.
        trait: whose generation prompts are drawn on, and on others of which the dose is audited.
        off: context in which the model is what "off" means, as `student.base`; None: the model as it stands.
        start: a coefficient to start the search from, such as the last round's; None: 1.
        seed: of the order of the prompts.
        progress: told (passes done, the most there can be).

    Returns:
        `c_star`; `value`, the p95 there, nats; `outcome`, how the search ended (only `tolerance` is on target, anything
        else also warns); `history` of every coefficient measured; `audit` on held-out prompts.

    Raises:
        UserError: a vector of another model.
    """
    recipe = _CALIBRATION.recipe(calibrate, keywords)
    settings = recipe.calibration
    settings.reference = "student" if off is None else "base"
    prompts = Prompts.drawn(prompts_that_fit(model, recipe, trait), settings, seed)
    options = {} if off is None else {"base": off}
    calibration = find_dose(
        model,
        vector,
        prompts,
        system=model.config.system,
        tokens=settings.tokens,
        goal=Goal.of(settings),
        start=start,
        progress=progress,
        **options,
    )
    for text in off_target("the dose", vector.dosing, calibration):
        warnings.warn(text, stacklevel=2)
    return calibration


def prompts_that_fit(model: LanguageModel, recipe: Recipe, trait: Trait) -> Trait:
    """The trait without prompts that are too long for the model's context, as a run leaves them out."""
    recipe.model = model.config
    kept, left_out = fitting(model, recipe, trait)
    if left_out:
        warnings.warn(f"prompts of {trait.name} left out, too long for the model's context: {left_out}", stacklevel=3)
    return kept
