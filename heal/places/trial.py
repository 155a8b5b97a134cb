"""What steering does to base by method and depth, at equal KL.

Every vector is fitted to the activations of one extraction pass, calibrated on a few generation prompts, and judged by
greedy answers to others: no evaluation uses either. docs/method.md, Where to steer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from heal.config import Recipe, SteerConfig
from heal.counts import refuse_more_than
from heal.dose.calibrate import Calibration, Goal
from heal.dose.find import Prompts, find_dose
from heal.evaluation.readouts import free_answers, likelihood, persona
from heal.evaluation.results import Answer, StageResult, summarise
from heal.evaluation.signal import TRAIT, Evidence, limits_of
from heal.evaluation.stats import Estimate, estimate, paired_difference
from heal.evaluation.subject import Setup, Subject
from heal.evaluation.validity import valid_names, validity
from heal.evaluation.verdict import incoherences
from heal.models.language_model import LanguageModel
from heal.places.place import Fractions, Place, Steered, ratio
from heal.progress import Progress, silent
from heal.randomness import derive_seed
from heal.steering.extract import Activations, contexts_of, pair_activations, vector_of
from heal.steering.methods import method_named
from heal.steering.settings import method_settings
from heal.steering.sites import Site, sites_of
from heal.steering.vector import SteeringVector
from heal.trait import Trait

READOUTS = (persona, free_answers, likelihood)
RELEVANCE = likelihood.RELEVANCE.name
TOLERANCE, MAX_PASSES = 0.2, 3  # of a dose: of the target, and decoding passes


@dataclass(frozen=True)
class Plan:
    """How much is tried.

    Attributes:
        methods: names of heal/steering/methods; the first is that of the place which the others are held against.
        bands: fractions of the depth, likewise.
        pairs: persona pairs of the extraction.
        prompts, tokens: of a calibration.
        answers: greedy answers by which a dose is judged.
    """

    methods: tuple[str, ...]
    bands: tuple[Fractions, ...]
    pairs: int
    prompts: int
    tokens: int
    answers: int


def places(language_model: LanguageModel, plan: Plan) -> list[Place]:
    """Every method in every band, in their order; of bands with the same blocks only the first."""
    bands: dict[tuple[int, ...], Fractions] = {}
    for fractions in plan.bands:
        bands.setdefault(tuple(language_model.band(fractions)), fractions)
    return [Place(method, band, blocks) for method, (blocks, band) in product(plan.methods, bands.items())]


def fit_all(
    settings: SteerConfig, language_model: LanguageModel, trait: Trait, plan: Plan, progress: Progress = silent
) -> dict[Place, SteeringVector]:
    """The vector of every place, in the order of `places`, from the activations of one pass over the persona pairs.

    Raises:
        UserError: a method that does not know this architecture.
        RoundError: activations that are not finite, or do not say where to steer.
    """
    at = {
        place: sites_of(language_model, method_named(place.method), place.blocks)
        for place in places(language_model, plan)
    }
    sites: list[Site] = list(dict.fromkeys(site for own in at.values() for site in own))
    activations: tuple[Activations, Activations] = pair_activations(
        language_model, trait, contexts_of(trait, plan.pairs), sites, progress
    )
    return {
        place: vector_of(
            language_model,
            trait,
            place.method,
            own,
            activations,
            method_settings(replace(settings, method=place.method)),
        )
        for place, own in at.items()
    }


def prompts_of(recipe: Recipe, trait: Trait, plan: Plan) -> Prompts:
    """The generation prompts of the doses, and those that are answered.

    Raises:
        UserError: the trait has fewer.
    """
    refuse_more_than("prompts + answers", plan.prompts + plan.answers, trait, held_out=False)
    drawn = replace(recipe.calibration, prompts=plan.prompts, audit_prompts=plan.answers)
    return Prompts.drawn(trait, drawn, recipe.run.seed)


@dataclass(frozen=True)
class Outcome:
    """A vector's dose, and the answers under it with what was read off them."""

    place: Place
    calibration: Calibration
    stage: StageResult


@dataclass(frozen=True)
class Trial:
    """What every vector is held against: base's answers to the same prompts.

    Attributes:
        recipe: its calibration, its limits of coherence and its seed count.
        setup: with the prompts that are answered.
        plan: sizes.
        prompts: those of the doses.
        base: base's answers, with what was read off them.
    """

    recipe: Recipe
    setup: Setup
    plan: Plan
    prompts: Prompts
    base: StageResult

    def dose(self, vector: SteeringVector, progress: Progress = silent) -> Calibration:
        """The coefficient at the recipe's KL, less exactly than in a run: shifts are divided by the KL that it has."""
        goal = Goal.of(self.recipe.calibration)
        rough = replace(
            goal,
            tolerance=max(goal.tolerance, TOLERANCE * goal.target),
            max_passes=min(goal.max_passes, MAX_PASSES),
            reference="student",
        )
        with self.setup.base():
            return find_dose(
                self.setup.language_model,
                vector,
                replace(self.prompts, audit=()),
                system=self.setup.system,
                tokens=self.plan.tokens,
                goal=rough,
                progress=progress,
            )

    def answered(self, place: Place, vector: SteeringVector, calibration: Calibration) -> Outcome:
        """Greedy answers under a vector at its dose."""
        subject = Subject(self.setup, "steered", self.setup.base, intervention=vector, coefficient=calibration.c_star)
        return Outcome(place, calibration, answers_read(subject, subject.answer()))

    def judged(self, outcome: Outcome, first: Outcome, tries: int = 1) -> Steered:
        """What a vector does, against base and against the outcome at the first place.

        Args:
            outcome: of the vector.
            first: of the first place.
            tries: places whose gains are held against that of the first: the level of `more` allows for them.
        """
        asked, seed = self.recipe.evaluation, derive_seed(self.recipe.run.seed, "bootstrap")
        limits = limits_of(asked)
        of_base = summarise(self.base, self.base, asked.resamples, seed)
        valid = valid_names(validity(Evidence(of_base, {}), limits))
        summary = summarise(outcome.stage, self.base, asked.resamples, seed)
        trait, calibration, gains = summary[TRAIT], outcome.calibration, self._gains(outcome)
        level = 1 - 0.05 / tries
        return Steered(
            outcome.place,
            outcome is first,
            calibration.c_star,
            calibration.value,
            calibration.miss if calibration.outcome == "unreachable" else "",
            Estimate(trait.value, trait.low, trait.high, trait.n),
            trait.delta,
            summary[RELEVANCE].delta,
            estimate(gains, "mean", asked.resamples, seed),
            paired_difference(gains, self._gains(first), "mean", asked.resamples, seed, level),
            summary["tail_perplexity"].value,
            summary["identified_share"].value,
            summary["repetition_share"].value,
            tuple(incoherences(summary, limits, valid)),
        )

    def _gains(self, outcome: Outcome) -> list[float]:
        """The shift of the trait less the loss of relevance, per nat, answer by answer."""
        shift, relevance = (
            [after - before for after, before in zip(*values, strict=True)]
            for values in (
                (stage.signal(name).values for stage in (outcome.stage, self.base)) for name in (TRAIT, RELEVANCE)
            )
        )
        nats = outcome.calibration.value
        return [ratio(trait + min(0.0, lost), nats) for trait, lost in zip(shift, relevance, strict=True)]


def answers_read(subject: Subject, answers: Sequence[Answer]) -> StageResult:
    """Answers with the trait, and the signals of coherence that cost little."""
    measured = [value for readout in READOUTS for value in readout.measure(subject, answers)]
    return StageResult(subject.stage, tuple(answers), tuple(measured))
