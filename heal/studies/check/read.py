"""Can the trait be read on this model: how far apart its readouts hold base under the two personas."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from heal.config import Recipe
from heal.evaluation.asking.choose import choose
from heal.evaluation.metrics import Summary
from heal.evaluation.readouts import moral_foundations, persona
from heal.evaluation.results import Answer, StageResult, summarise
from heal.evaluation.scenes import target_of
from heal.evaluation.signal import Evidence, Signal, signals
from heal.evaluation.stats import Estimate
from heal.evaluation.subject import Setup, Subject
from heal.progress import Progress, silent
from heal.randomness import derive_seed


@dataclass(frozen=True)
class Separation:
    """What a readout of the trait says of base and of base under either persona, in `unit`.

    Attributes:
        signal, unit: of the readout.
        base, positive, negative: its values for base, and for base under either persona as system prompt.
        apart: positive over negative, paired by item; above 0 is as the trait means it.
        over_base: positive over base, the same way round.
        valid, why: whether the readout is valid for the model, as a run's baseline judges it.
    """

    signal: str
    unit: str
    base: float
    positive: float
    negative: float
    apart: Estimate
    over_base: Estimate
    valid: bool
    why: str

    @property
    def readable(self) -> bool:
        """Whether it is valid and tells the personas apart: the interval of `apart` lies above 0."""
        return self.valid and self.apart.low > 0


def separations(recipe: Recipe, setup: Setup, base: Sequence[Answer], progress: Progress = silent) -> list[Separation]:
    """The persona log-ratio first, then the foundation that the trait means, where there is one and scenes are asked.

    Args:
        recipe: its `evaluation` section and its seed count.
        setup: what a run's stages are asked.
        base: base's answers to the setup's prompts.
        progress: told (stages measured, stages).
    """
    trait, resamples = setup.trait, recipe.evaluation.resamples
    seed = derive_seed(recipe.run.seed, "bootstrap")
    foundation = target_of(trait, setup.vignettes)
    asked = setup if foundation else replace(setup, vignettes=())
    if foundation:
        choice = moral_foundations.choice(asked)
        if chosen := choose(choice, Subject(asked, "base", setup.base), resamples, seed):
            asked = replace(asked, asking={choice.name: chosen})
    stages: list[StageResult] = []
    for name, system in (("base", None), ("prompted", trait.positive), ("opposite", trait.negative)):
        subject = Subject(asked, name, setup.base, system)
        answers = base if system is None else subject.answer()
        measured = [*persona.measure(subject, answers), *moral_foundations.measure(subject, answers)]
        stages.append(StageResult(name, tuple(answers), tuple(measured)))
        progress(len(stages), 3)
    of_base, prompted, opposite = stages
    evidence = Evidence(
        summarise(of_base, of_base, resamples, seed), summarise(prompted, opposite, resamples, seed), asked.asking
    )
    over_base = summarise(prompted, of_base, resamples, seed)
    found = [_separation(persona.PERSONA, 1, evidence, over_base)]
    if foundation:
        found.append(_separation(signals()[foundation.signal], foundation.intent, evidence, over_base))
    return found


def _separation(signal: Signal, sign: int, evidence: Evidence, over_base: Summary) -> Separation:
    name = signal.name
    personas = evidence.personas[name]
    assert signal.validity is not None
    judged = signal.validity.judge(name, evidence)
    return Separation(
        name,
        signal.unit,
        evidence.base[name].value,
        personas.value,
        personas.value - personas.delta.value,
        _turned(personas.delta, sign),
        _turned(over_base[name].delta, sign),
        judged.valid,
        judged.why,
    )


def _turned(estimate: Estimate, sign: int) -> Estimate:
    """The estimate of `sign` times the quantity."""
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    return Estimate(sign * estimate.value, low, high, estimate.n)
