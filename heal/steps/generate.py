"""Generate: steered completions of the current student, filtered."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from heal.accumulator import Accumulator
from heal.config import Recipe
from heal.decoding import Sampling
from heal.generation.collect import Collection, Plan, collect, drops
from heal.generation.filters import FilterLimits
from heal.generation.relevance import PromptCheck
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
        prompts = prompts[: settings.prompts]
        assert self.vector.c_star is not None, "generate: the vector has no dose"
        check = self._check(prompts)
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
            check=check,
            seed=(seed, self.round_index, "generate"),
        )
        with self.accumulator.student():
            collection = collect(make, prompts, Plan.of(settings, limits), progress)
        return replace(collection, off_prompt_below=None if check is None else check.limit)

    def _check(self, prompts: Sequence[str]) -> PromptCheck | None:
        """How much a completion must say about its prompt, by base's own answers; None where nobody asks."""
        fraction = self.recipe.filter.min_on_prompt
        if not fraction or len(prompts) < 2:
            return None
        return PromptCheck.of_base(
            self.language_model,
            self.accumulator.base,
            self.recipe.model.system,
            prompts,
            tokens=self.recipe.generation.tokens,
            fraction=fraction,
        )

    def finding(self, artifact: Collection) -> str:
        dropped = ", ".join(f"{reason} {count}" for reason, count in drops(artifact.rows).items())
        scaled = "" if artifact.scale == 1 else f" (dose walked down to {artifact.scale:.2f})"
        why = f"; dropped for {dropped}" if dropped else ""
        ended = sum(row.ended for row in artifact.kept)
        return f"kept {len(artifact.kept)} of {len(artifact.rows)}{scaled}{why}; {ended} ended by themselves"

    def warnings(self, artifact: Collection) -> list[str]:
        found = []
        if artifact.off_prompt_below is not None and artifact.off_prompt_below <= 0:
            found.append(
                "base's own answers say nothing about their prompts, so no completion was dropped as off prompt"
            )
        if any(completion.ended for completion in artifact.kept):
            return found
        return [
            *found,
            f"no kept completion ended within {self.recipe.generation.tokens} tokens: the student sees no end of turn; "
            "raise generation.tokens if answers should stop by themselves",
        ]
