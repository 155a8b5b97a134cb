"""Can the trait be steered on this model: its shift per nat, by method and depth, at equal KL.

Every vector is fitted to the activations of one extraction pass, calibrated on a few generation prompts, and judged by
greedy answers to others: no evaluation uses either.
"""

import math
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
from heal.evaluation.stats import Estimate, paired_difference
from heal.evaluation.subject import Setup, Subject
from heal.evaluation.validity import valid_names, validity
from heal.evaluation.verdict import incoherences
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.randomness import derive_seed
from heal.steering.extract import Activations, contexts_of, pair_activations, vector_of
from heal.steering.methods import method_named
from heal.steering.settings import method_settings
from heal.steering.sites import Site, sites_of
from heal.steering.vector import SteeringVector
from heal.trait import Trait

READOUTS = (persona, free_answers, likelihood)
TOLERANCE, MAX_PASSES = 0.2, 3  # of a dose: of the target, and decoding passes

Fractions = tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """How much is tried.

    Attributes:
        methods: names of heal/steering/methods, the recipe's own first.
        bands: fractions of the depth, the recipe's own first.
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


@dataclass(frozen=True)
class Place:
    """Where and how: a method in a band, given as fractions of the depth and as blocks."""

    method: str
    band: Fractions
    blocks: tuple[int, ...]

    @property
    def words(self) -> str:
        """As keys of the recipe."""
        return f"steer.method={self.method} steer.band=[{self.band[0]:g},{self.band[1]:g}]"


@dataclass(frozen=True)
class Steered:
    """What a vector does at its dose.

    Attributes:
        place: where it acts.
        of_recipe: whether it is the place of the recipe.
        c_star: the coefficient.
        kl: the p95 of the per-token KL there, nats.
        miss: in words, that no coefficient reaches the target; empty where one does.
        trait: the persona log-ratio, nats per token.
        shift: its paired difference to base's answers.
        more: of `shift`, what it is per nat above that of the recipe's place; 0 for that itself.
        tail_perplexity, identified_share, repetition_share: of the answers.
        incoherent: what is past a limit of coherence, in words.
    """

    place: Place
    of_recipe: bool
    c_star: float
    kl: float
    miss: str
    trait: Estimate
    shift: Estimate
    more: Estimate
    tail_perplexity: float
    identified_share: float
    repetition_share: float
    incoherent: tuple[str, ...]

    @property
    def per_nat(self) -> Estimate:
        """The shift of the trait for each nat of p95 KL, 1 per token."""
        shift, nats = self.shift, self.kl
        return Estimate(_ratio(shift.value, nats), _ratio(shift.low, nats), _ratio(shift.high, nats), shift.n)

    @property
    def works(self) -> bool:
        """Whether the interval of the shift lies above 0."""
        return self.shift.low > 0


def places(language_model: LanguageModel, plan: Plan) -> list[Place]:
    """Every method in every band, the recipe's band first; of bands with the same blocks only the first."""
    bands: dict[tuple[int, ...], Fractions] = {}
    for fractions in plan.bands:
        bands.setdefault(tuple(language_model.band(fractions)), fractions)
    return [Place(method, band, blocks) for method, (blocks, band) in product(plan.methods, bands.items())]


def fit_all(
    settings: SteerConfig, language_model: LanguageModel, trait: Trait, plan: Plan, progress: Progress = silent
) -> dict[Place, SteeringVector]:
    """The vector of every place, the recipe's first, from the activations of one pass over the persona pairs.

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

    def judged(self, outcome: Outcome, own: Outcome) -> Steered:
        """What a vector does, against base and against `own`, the outcome at the recipe's place."""
        asked, seed = self.recipe.evaluation, derive_seed(self.recipe.run.seed, "bootstrap")
        limits = limits_of(asked)
        of_base = summarise(self.base, self.base, asked.resamples, seed)
        valid = valid_names(validity(Evidence(of_base, {}), limits))
        summary = summarise(outcome.stage, self.base, asked.resamples, seed)
        trait, calibration = summary[TRAIT], outcome.calibration
        return Steered(
            outcome.place,
            outcome is own,
            calibration.c_star,
            calibration.value,
            calibration.miss if calibration.outcome == "unreachable" else "",
            Estimate(trait.value, trait.low, trait.high, trait.n),
            trait.delta,
            paired_difference(self._per_nat(outcome), self._per_nat(own), "mean", asked.resamples, seed),
            summary["tail_perplexity"].value,
            summary["identified_share"].value,
            summary["repetition_share"].value,
            tuple(incoherences(summary, limits, valid)),
        )

    def _per_nat(self, outcome: Outcome) -> list[float]:
        """The shift of the trait per nat, answer by answer."""
        values = zip(outcome.stage.signal(TRAIT).values, self.base.signal(TRAIT).values, strict=True)
        return [_ratio(after - before, outcome.calibration.value) for after, before in values]


def answers_read(subject: Subject, answers: Sequence[Answer]) -> StageResult:
    """Answers with the trait, and the signals of coherence that cost little."""
    measured = [value for readout in READOUTS for value in readout.measure(subject, answers)]
    return StageResult(subject.stage, tuple(answers), tuple(measured))


def _ratio(value: float, nats: float) -> float:
    return value / nats if nats > 0 else math.nan
