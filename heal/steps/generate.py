"""Generate: steered completions of the current student, filtered."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from heal.accumulator import Accumulator
from heal.config import Recipe
from heal.decoding import Sampling
from heal.generation.collect import Collection, Plan, collect, drops, refuse_starved
from heal.generation.filters import FilterLimits
from heal.generation.own import own_completions
from heal.generation.relevance import PromptCheck
from heal.generation.sample import Sampler, judged
from heal.models.language_model import LanguageModel
from heal.own.texts import Said, said_from
from heal.progress import Progress
from heal.prompts import drawn as drawn_prompts
from heal.responding import respond
from heal.run.step import Step
from heal.steering.vector import SteeringVector
from heal.steering.weights import WeightDifference
from heal.trait import Trait
from heal.turns import after_exchange, has_turns, whole_sentences


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
        if self.recipe.data.completions:
            return self._own(said_from("data.completions", self.recipe.data.completions))
        settings, limits, seed = self.recipe.generation, self.recipe.filter, self.recipe.run.seed
        drawn = drawn_prompts(self.trait, "generation_prompts", seed, self.round_index, "prompts")
        prompts = self._continued(drawn[: settings.prompts], drawn)
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

    def _own(self, said: Sequence[Said]) -> Collection:
        """The user's own completions, filtered as sampled ones are, or all that fit the model's context."""
        recipe, model, check, judge = self.recipe, self.language_model, None, None
        if recipe.data.filter:
            check = self._check(list(dict.fromkeys(row.prompt for row in said)))
            limits, narration = FilterLimits.of(recipe.filter), self.trait.narration
            judge = partial(judged, model, base=self.accumulator.base, limits=limits, narration=narration, check=check)
        rows = own_completions(model, recipe.model.system, said, judge)
        collection = Collection(tuple(rows), 1.0, None if check is None else check.limit)
        refuse_starved(collection, recipe.filter.keep_floor, recipe.filter.min_train)
        return collection

    def _continued(self, prompts: Sequence[str], drawn: Sequence[str]) -> list[str]:
        """The prompts, some of them (`generation.multi_turn`) after the next of `drawn` and base's answer to it.

        One stays alone where base says nothing, or where what precedes it would leave no room for an answer.
        """
        settings, system, model = self.recipe.generation, self.recipe.model.system, self.language_model
        share = settings.multi_turn
        later = [own for own in range(len(prompts)) if int((own + 1) * share) > int(own * share)]
        if not later:
            return list(prompts)
        before = [drawn[(own + 1) % len(drawn)] for own in later]
        with self.accumulator.base():
            said = respond(model, [(system, prompt) for prompt in before], settings.tokens)
        continued, room = list(prompts), model.context - model.thinking - settings.tokens
        for own, first, response in zip(later, before, said, strict=True):
            answer = model.chat.decode(list(response.completion.ids)).strip()
            if not answer or has_turns(answer):
                continue
            prompt = after_exchange(prompts[own], first, whole_sentences(answer))
            if model.longest_prompt(system, prompt) <= room:
                continued[own] = prompt
        return continued

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
        asked = f", {artifact.asked} asked for" if artifact.asked else ""
        return f"kept {len(artifact.kept)} of {len(artifact.rows)}{asked}{scaled}{why}; {ended} ended by themselves"

    def warnings(self, artifact: Collection) -> list[str]:
        found = []
        if artifact.off_prompt_below is not None and artifact.off_prompt_below <= 0:
            found.append(
                "base's own answers say nothing about their prompts, so no completion was dropped as off prompt"
            )
        if len(artifact.kept) < artifact.asked:
            settings = self.recipe.generation
            found.append(
                f"{len(artifact.kept)} of generation.keep={artifact.asked} completions: the budget of "
                f"{len(artifact.rows)} (generation.tries={settings.tries:g}) is spent; raise it, or loosen what "
                "dropped the others"
            )
        if any(completion.ended for completion in artifact.kept):
            return found
        return [
            *found,
            f"no kept completion ended within {self.recipe.generation.tokens} tokens: the student sees no end of turn; "
            "raise generation.tokens if answers should stop by themselves",
        ]
