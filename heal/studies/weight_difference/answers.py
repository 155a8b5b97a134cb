"""Completions under each of a trait's personas as training rows, with the persona left out of the training prompt."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from heal.config import Recipe
from heal.decoding import Sampling
from heal.errors import RoundError
from heal.generation.collect import Completion, Request
from heal.generation.filters import FilterLimits
from heal.generation.sample import judged
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.randomness import shuffled
from heal.responding import respond
from heal.trait import Trait

STAGE = "weight difference"  # part of what its randomness is derived from, with the run's seed


@dataclass(frozen=True)
class Contrast:
    """Completions of the same prompts under both personas.

    Attributes:
        positive, negative: those to train on, equally many of each prompt on either side, with the neutral system
            prompt (`prompt_ids`) in place of the persona that they were sampled under.
        made: number sampled under each persona.
        kept_positive, kept_negative: numbers kept by the filter, before the two sides were balanced.
    """

    positive: list[Completion]
    negative: list[Completion]
    made: int
    kept_positive: int
    kept_negative: int


def contrasting_answers(
    language_model: LanguageModel, trait: Trait, recipe: Recipe, samples: int, progress: Progress = silent
) -> Contrast:
    """Samples and filters completions under both personas.

    `generation.prompts` of the trait's generation prompts are drawn, and sampled according to
    `generation.temperature`, `top_p`, `top_k` and `tokens`; `filter` has the thresholds. Perplexity is taken after
    the prompt that was sampled from, and the trait's narration patterns apply to both personas.

    Args:
        language_model: the base.
        trait: its personas and prompts are used.
        recipe: its run.seed, model.system, generation and filter sections are used.
        samples: completions of each prompt under each persona.
        progress: told (completions decoded, completions).

    Raises:
        RoundError: fewer than `filter.min_train` are left on either side.
    """
    prompts = shuffled(list(trait.generation_prompts), recipe.run.seed, STAGE, "prompts")[: recipe.generation.prompts]
    requests = [Request(index, prompt, 1.0) for index, prompt in enumerate(p for p in prompts for _ in range(samples))]
    kept = []
    for part, persona in enumerate((trait.positive, trait.negative)):

        def told(done: int, total: int, part: int = part) -> None:
            progress(part * total + done, 2 * total)

        rows = _under(language_model, persona, requests, trait.narration, recipe, part, told)
        kept.append([row for row in rows if row.kept])
    positive, negative = _balanced(*kept)
    if len(positive) < recipe.filter.min_train:
        raise RoundError(
            f"{len(kept[0])} and {len(kept[1])} of {len(requests)} completions under the two personas were kept, "
            f"{len(positive)} on the same prompts, fewer than filter.min_train={recipe.filter.min_train}; raise "
            "samples or generation.prompts, or relax the filter."
        )
    system = recipe.model.system
    return Contrast(
        positive=_neutral(language_model, system, positive),
        negative=_neutral(language_model, system, negative),
        made=len(requests),
        kept_positive=len(kept[0]),
        kept_negative=len(kept[1]),
    )


def _under(
    language_model: LanguageModel,
    persona: str,
    requests: Sequence[Request],
    narration: Sequence[str],
    recipe: Recipe,
    part: int,
    progress: Progress,
) -> list[Completion]:
    """All completions under one persona, with the filter's verdicts."""
    sampling, limits = recipe.generation, recipe.filter
    responses = respond(
        language_model,
        [(persona, request.prompt) for request in requests],
        sampling.tokens,
        sampling=Sampling(sampling.temperature, sampling.top_p, sampling.top_k),
        seeds=[(recipe.run.seed, STAGE, part, request.index) for request in requests],
        loop_share=limits.max_repetition,
        progress=progress,
    )
    return judged(
        language_model,
        requests,
        responses,
        base=nullcontext,
        limits=FilterLimits.of(limits),
        narration=narration,
    )


def _balanced(positive: list[Completion], negative: list[Completion]) -> tuple[list[Completion], list[Completion]]:
    """The first completions of each prompt, as many as both sides have, so that both cover the same prompts."""
    room = Counter(row.prompt for row in positive) & Counter(row.prompt for row in negative)

    def first(rows: list[Completion]) -> list[Completion]:
        taken: Counter[str] = Counter()
        chosen = []
        for row in rows:
            if taken[row.prompt] < room[row.prompt]:
                taken[row.prompt] += 1
                chosen.append(row)
        return chosen

    return first(positive), first(negative)


def _neutral(language_model: LanguageModel, system: str, rows: Sequence[Completion]) -> list[Completion]:
    """The same completions after the neutral system prompt."""
    chat = language_model.chat
    return [replace(row, prompt_ids=tuple(chat.ids(system, row.prompt, thought=row.thought))) for row in rows]
