"""Generate: steered completions of the current student, filtered."""

from dataclasses import dataclass

from heal.accumulator import Accumulator
from heal.config import Recipe
from heal.decoding import Sampling
from heal.generation.collect import Collection, Plan, collect, drops
from heal.generation.filters import FilterLimits
from heal.generation.sample import Sampler
from heal.models.language_model import LanguageModel
from heal.progress import Progress
from heal.randomness import shuffled
from heal.run.step import Step
from heal.steering.vector import SteeringVector
from heal.steering.weights import WeightDifference
from heal.trait import Trait


@dataclass(frozen=True)
class Generate(Step[Collection]):
    """Samples the round's prompts at every dose of the recipe, and keeps what is whole.

    Attributes:
        vector: with its c_star; a weight difference does as well.
    """

    language_model: LanguageModel
    accumulator: Accumulator
    trait: Trait
    vector: SteeringVector | WeightDifference
    recipe: Recipe
    round_index: int

    name = "generate"
    load = staticmethod(Collection.load)

    def compute(self, progress: Progress) -> Collection:
        settings, limits, seed = self.recipe.generation, self.recipe.filter, self.recipe.run.seed
        prompts = shuffled(list(self.trait.generation_prompts), seed, self.round_index, "prompts")
        assert self.vector.c_star is not None, "generate: the vector has no dose"
        make = Sampler(
            language_model=self.language_model,
            base=self.accumulator.base,
            intervention=self.vector,
            c_star=self.vector.c_star,
            system=self.recipe.model.system,
            tokens=settings.tokens,
            sampling=Sampling(settings.temperature, settings.top_p, settings.top_k),
            limits=FilterLimits.of(limits),
            narration=self.trait.narration,
            seed=(seed, self.round_index, "generate"),
        )
        with self.accumulator.student():
            return collect(make, prompts[: settings.prompts], Plan.of(settings, limits), progress)

    def finding(self, artifact: Collection) -> str:
        dropped = ", ".join(f"{reason} {count}" for reason, count in drops(artifact.rows).items())
        scaled = "" if artifact.scale == 1 else f" (dose walked down to {artifact.scale:.2f})"
        why = f"; dropped for {dropped}" if dropped else ""
        ended = sum(row.ended for row in artifact.kept)
        return f"kept {len(artifact.kept)} of {len(artifact.rows)}{scaled}{why}; {ended} ended by themselves"

    def warnings(self, artifact: Collection) -> list[str]:
        if any(completion.ended for completion in artifact.kept):
            return []
        return [
            f"no kept completion ended within {self.recipe.generation.tokens} tokens: the student sees no end of turn; "
            "raise generation.tokens if answers should stop by themselves"
        ]
