"""The student: what it writes under steering, and how it heals."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer

from heal.accumulator import Accumulator
from heal.api.keywords import Keywords
from heal.api.model import coefficient
from heal.api.steering import prompts_that_fit
from heal.environment import notices_ignored
from heal.errors import UserError
from heal.generation.collect import Collection, Completion
from heal.healing.log import StepLog
from heal.healing.passes import fitted
from heal.healing.rows import training_rows
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.run.student import build_accumulator, lora_seed
from heal.steering.vector import SteeringVector
from heal.steering.weights import WeightDifference
from heal.steps.generate import Generate
from heal.steps.heal import Heal, Healed
from heal.trait import Trait

_LORA = ("rank", "alpha", "band", "use_dora", "init")  # keys of the heal section that say what a round trains
_ACCUMULATOR = Keywords(*(f"heal.{name}" for name in _LORA if name != "use_dora"), "compute.merge_history")
_GENERATION = Keywords("generation", "filter")
_HEAL = Keywords("heal", "compute.reference_memory", without=_LORA)


@_ACCUMULATOR.documented
def accumulate(model: LanguageModel, **keywords: Any) -> Accumulator:
    """Makes the model a student: `y = W x + c_history B_h A_h x + c_current B A x` on the linear layers of `band`.

    `current` is the LoRA that `heal` trains, of `rank` and `alpha`, with B = 0; `history` are the rounds folded so far,
    none yet. The model's weights W never change. docs/method.md, Accumulator.

    Args:
        model: the base; from now on it is the student, but inside one of the contexts below.

    Returns:
        the accumulator. `student.base()`, `student.previous()` and `student.student()` are contexts in which the model
        is the original (bit for bit), the student before this round, the student; `student.gates(c_history, c_current)`
        is any other. `student.fold()` moves `current` into the history, exactly; `student.rounds` counts that.

    Raises:
        UserError: the model has an accumulator already; an adapter that cannot be folded.
    """
    recipe = _ACCUMULATOR.recipe(accumulate, keywords)
    if any(isinstance(module, LoraLayer) for module in model.model.modules()):
        raise UserError("accumulate(): the model carries adapters already; load it again")
    with notices_ignored():
        return build_accumulator(model, recipe)


@_GENERATION.documented
def generate(
    student: Accumulator,
    vector: SteeringVector | WeightDifference,
    trait: Trait,
    *,
    c_star: float | None = None,
    round_index: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
    **keywords: Any,
) -> Collection:
    """Samples completions of the steered student and filters them.

    `prompts` of the trait's generation prompts, each at every dose of `alphas` (multiples of `c_star`), under the
    neutral system prompt. If too few survive the filter, the doses are walked down. docs/method.md, Generation and
    filter.

    Args:
        student: the student.
        vector: what carries the trait.
        trait: its generation prompts, and the patterns of text that talks about the trait.
        c_star: the coefficient at dose 1; None: the vector's calibrated one.
        round_index: the round, from 0, on which prompts and sampling depend; None: the rounds folded so far.
        seed: of the prompts and the sampling.
        progress: told (completions made, completions planned).

    Returns:
        `rows`, each with its text, token ids, dose `alpha`, `tail_perplexity` under base and the reasons for which it
        was `dropped`; `kept` ones; `figures`, counted by dose and reason; `scale` of the doses after the walk-down.

    Raises:
        UserError: a vector without a dose or of another model.
        RoundError: too few survived; says which filter starved the round and what to change.
    """
    recipe = _GENERATION.recipe(generate, keywords)
    recipe.run.seed, index = seed, _round(student, round_index)
    model, dosed = student.language_model, replace(vector, c_star=coefficient(vector, c_star))
    trait = prompts_that_fit(model, recipe, trait)
    step = Generate(model, student, trait, dosed, recipe, index)
    collection = step.compute(progress)
    for text in step.warnings(collection):
        warnings.warn(text, stacklevel=2)
    return collection


@_HEAL.documented
def heal(
    student: Accumulator,
    completions: Collection | Sequence[Completion],
    *,
    round_index: int | None = None,
    seed: int = 0,
    start: float | None = None,
    on_log: Callable[[StepLog], None] | None = None,
    progress: Progress = silent,
    **keywords: Any,
) -> Healed:
    """Trains a fresh `current` on the kept completions, held to base by the barrier; then `student.fold()` keeps it.

    `loss = CE(completion tokens) + lambda_r * mean_i relu(D_i - tau)`, D_i the divergence of completion i from the
    reference, nats. What an earlier call trained and nobody folded is discarded. docs/method.md, Healing.

    Args:
        student: the student; its `current` is trained.
        completions: what `generate` returned, or some of its rows; dropped ones are left out.
        round_index: r, from 0, on which lambda_r and the training's randomness depend; None: the rounds folded so far.
        seed: of A, of the order of the completions and of those held out for validation.
        start: with `strength="auto"`, `figures.strength` of the round before; None: there was none.
        on_log: gets the log of each optimiser step as it is made.
        progress: told (optimiser steps done, optimiser steps).

    Returns:
        `log` of every step (`values`: `loss`, `ce`, `D_mean`, `D_max` in nats, `barrier_on`, ...); `figures`, means
        over the last epoch; `adapter`, the round's LoRA as the files of a PEFT folder.

    Raises:
        UserError: no kept completion, no such divergence or aggregate.
        RoundError: a loss or weights that are not finite, or memory ran out.
    """
    recipe = _HEAL.recipe(heal, keywords)
    recipe.run.seed, index = seed, _round(student, round_index)
    rows = [row for row in (completions.rows if isinstance(completions, Collection) else completions) if row.kept]
    if not rows:
        raise UserError("heal(): no completion was kept, so there is nothing to train on")
    scratch = Path(tempfile.gettempdir())
    step = Heal(student.language_model, student, rows, recipe, index, scratch, on_log or (lambda log: None), start)
    model, settings = student.language_model, recipe.heal
    with notices_ignored():
        student.start_round(lora_seed(recipe, index))
        if model.fits_passes and not model.batching.completions:
            longest = sorted(training_rows(model, rows), key=lambda row: -len(row.input_ids))
            whole = longest[: settings.batch_size * settings.accumulation]
            first = min(settings.batch_size, len(whole))
            model.batching.completions = fitted(model, student, settings, whole, first, len(whole)).completions
        return step.compute(progress)


def _round(student: Accumulator, index: int | None) -> int:
    return student.rounds if index is None else index
