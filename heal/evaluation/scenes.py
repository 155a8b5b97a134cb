"""What the answers about the scenes say beyond their signals: the target of a trait, surgical informedness."""

from collections.abc import Sequence

from heal.evaluation.metrics import FoundationFigures
from heal.evaluation.readouts.moral_foundations import CLR, temperature_of
from heal.evaluation.readouts.wrongness import WRONGNESS, WRONGNESS_MASS
from heal.evaluation.results import StageResult
from heal.evaluation.surgical import Side, SurgicalInformedness, surgical_variants
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

    A student has no -C, so that its surgical informedness is one-armed. There is none where the trait means no
    foundation, or where base was measured before there was such a readout.
    """
    if not scenes:
        return None
    temperature = temperature_of(clr_values(healed), soft_labels(scenes))
    if not trait.foundation or not base.has(WRONGNESS.name):
        return FoundationFigures(temperature)
    return FoundationFigures(temperature, surgical_sides(trait, scenes, base, healed, None))


def surgical_sides(
    trait: Trait, scenes: Sequence[Vignette], base: StageResult, up: StageResult | None, down: StageResult | None
) -> dict[str, SurgicalInformedness]:
    """Surgical informedness by variant of what base, +C and -C said about the scenes, for the trait's foundation.

    A side that was not measured is None.
    """
    loadings = soft_labels(scenes)[:, list(FOUNDATIONS).index(trait.foundation)]
    return surgical_variants(
        base.signal(WRONGNESS.name).values,
        _side(up),
        _side(down),
        trait.intent,
        [scene.foundation == trait.foundation for scene in scenes],
        loadings.tolist() if all(scene.labels for scene in scenes) else None,
    )


def _side(stage: StageResult | None) -> Side | None:
    return None if stage is None else Side(stage.signal(WRONGNESS.name).values, stage.mass(WRONGNESS_MASS.name))
