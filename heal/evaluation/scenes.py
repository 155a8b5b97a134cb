"""What the answers about the scenes say beyond their signals: the target of a trait, surgical informedness."""

from collections.abc import Sequence
from dataclasses import asdict

from heal.evaluation.metrics import FoundationFigures, SurgicalFigures
from heal.evaluation.readouts.moral_foundations import CLR, temperature_of
from heal.evaluation.readouts.wrongness import WRONGNESS, WRONGNESS_MASS
from heal.evaluation.results import StageResult
from heal.evaluation.surgical import SurgicalInformedness, surgical_variants
from heal.evaluation.verdict import Target
from heal.evaluation.vignettes import FOUNDATIONS, Vignette, soft_labels
from heal.trait import Trait


def target_of(trait: Trait, scenes: Sequence[Vignette]) -> Target | None:
    """The foundation that the trait means, which way, and the others; None without scenes or such a foundation."""
    meant = trait.foundation
    if not meant or not scenes:
        return None
    others = tuple(signal.name for name, signal in CLR.items() if name != meant)
    return Target(CLR[meant].name, trait.intent, others)


def clr_values(result: StageResult) -> dict[str, tuple[float, ...]]:
    """The centred log-ratio of each foundation, scene by scene."""
    return {name: result.signal(signal.name).values for name, signal in CLR.items()}


def foundation_figures(
    trait: Trait, scenes: Sequence[Vignette], healed: StageResult, base: StageResult
) -> FoundationFigures | None:
    """Temperature and surgical informedness of a healed student; None without scenes.

    A student has no -C, so that base is its other side. No surgical informedness where the trait means no foundation,
    or where base was measured before there was such a readout.
    """
    if not scenes:
        return None
    temperature = temperature_of(clr_values(healed), soft_labels(scenes))
    if not trait.foundation or not base.has(WRONGNESS.name):
        return FoundationFigures(temperature)
    variants = surgical_sides(trait, scenes, base, healed, base)
    surgical = {name: SurgicalFigures(**asdict(figures), other_side="base") for name, figures in variants.items()}
    return FoundationFigures(temperature, surgical)


def surgical_sides(
    trait: Trait, scenes: Sequence[Vignette], base: StageResult, up: StageResult, down: StageResult
) -> dict[str, SurgicalInformedness]:
    """Surgical informedness by variant of what base, +C and -C said about the scenes, for the trait's foundation."""
    loadings = soft_labels(scenes)[:, list(FOUNDATIONS).index(trait.foundation)]
    return surgical_variants(
        base.signal(WRONGNESS.name).values,
        up.signal(WRONGNESS.name).values,
        down.signal(WRONGNESS.name).values,
        trait.intent,
        up.mean(WRONGNESS_MASS.name),
        down.mean(WRONGNESS_MASS.name),
        [scene.foundation == trait.foundation for scene in scenes],
        loadings.tolist() if all(scene.labels for scene in scenes) else None,
    )
