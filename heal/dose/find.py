"""The dose of an intervention on a model as it stands: `c_star`, with its audit and what there is to warn of."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from heal.config import CalibrationConfig
from heal.console import counted
from heal.dose.calibrate import Calibration, Goal, Ids, PathDivergence, calibrate, path_divergences
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.prompts import drawn
from heal.steering.intervention import Dosing, Intervention
from heal.trait import Trait


@dataclass(frozen=True)
class Prompts:
    """User messages on which a dose is found, and the held-out ones of its audit."""

    calibration: tuple[str, ...]
    audit: tuple[str, ...] = ()

    @staticmethod
    def drawn(trait: Trait, settings: CalibrationConfig, seed: int) -> "Prompts":
        """The trait's generation prompts in an order of the seed: first those of the dose, then those of the audit."""
        prompts = drawn(trait, "generation_prompts", seed, "calibration")
        end = settings.prompts + settings.audit_prompts
        return Prompts(tuple(prompts[: settings.prompts]), tuple(prompts[settings.prompts : end]))


def find_dose(
    language_model: LanguageModel,
    intervention: Intervention,
    prompts: Prompts,
    *,
    system: str,
    tokens: int,
    goal: Goal,
    base: Callable[[], AbstractContextManager[None]] = nullcontext,
    start: float | None = None,
    progress: Progress = silent,
) -> Calibration:
    """The coefficient at which an intervention on the model as it stands spends the KL that was asked for.

    Against the base the model's own drift counts, which is there at coefficient 0 already.

    Args:
        language_model: the model as it stands: the student.
        intervention: what is dosed.
        prompts: user messages.
        system: neutral system prompt.
        tokens: greedy tokens decoded per prompt.
        goal: the KL, its tolerance, and what it is measured against.
        base: context in which the model is the base; used where `goal.reference` is `base`.
        start: warm start; None: cold.
        progress: told (passes done, the most there can be).
    """
    against_base = goal.reference == "base"

    def measure(asked: Sequence[Ids], coefficients: Sequence[float]) -> list[PathDivergence]:
        off = base if against_base else nullcontext
        return path_divergences(language_model, intervention, coefficients, asked, tokens, off)

    calibration, audit = (
        [language_model.chat.ids(system, text) for text in texts] for texts in (prompts.calibration, prompts.audit)
    )
    dosing = intervention.dosing
    return calibrate(
        partial(measure, calibration),
        partial(measure, audit) if audit else None,
        goal,
        start=start,
        dosing=replace(dosing, vanishes=dosing.vanishes and not against_base),
        progress=progress,
    )


def finding(calibration: Calibration, prompts: Prompts) -> str:
    """A calibration in one line."""
    others = counted(len(prompts.audit), "held-out prompt")
    audit = "" if calibration.audit is None else f", audit {calibration.audit.p95:.2f} on {others}"
    return (
        f"c* = {calibration.c_star:.3f}: p95 KL {calibration.value:.2f} nats (target {calibration.target:g}{audit}), "
        f"{calibration.passes} {'pass' if calibration.passes == 1 else 'passes'}, ended on {calibration.outcome}"
    )


def short_audit(prompts: Prompts, settings: CalibrationConfig) -> list[str]:
    """Warnings where the calibration leaves fewer prompts for its audit than were asked for."""
    left, used = len(prompts.audit), len(prompts.calibration)
    if left >= settings.audit_prompts:
        return []
    return [
        f"the audit of the dose has {left} of calibration.audit_prompts={settings.audit_prompts} prompts: the trait "
        f"has {used + left} generation prompts, and calibration.prompts={settings.prompts} come first"
    ]


def off_target(label: str, dosing: Dosing, calibration: Calibration) -> list[str]:
    """Warnings where a dose is not on target, and where it is none: c* = 0 of what does nothing there."""
    warnings = []
    if not calibration.on_target:
        warnings.append(f"{label} is not on target: {calibration.miss}")
    if calibration.c_star == 0 and dosing.vanishes:
        warnings.append(
            f"{label}: c* = 0, so nothing is steered: the student by itself is {calibration.value:.2f} nats from base "
            f"(p95 KL, target {calibration.target:g}); raise calibration.target, or set "
            "calibration.reference=student, which counts only what steering adds"
        )
    return warnings


def odd_multiples(label: str, dosing: Dosing) -> list[str]:
    """Warnings where a dose below 1 does not shift less: the shift falls, or coefficient 0 does something."""
    below = "a dose below 1 (generation.alphas, the walk-down, alphas of survival)"
    if dosing.falling:
        return [f"{label}: its coefficient is a direction and not a size, so {below} shifts more and not less"]
    if not dosing.vanishes:
        return [
            f"{label}: it replaces a component of the activations at any coefficient, 0 included, so {below} takes "
            "nothing of that back; only alpha 0 of survival leaves it off"
        ]
    return []
