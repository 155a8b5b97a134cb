"""Makes the completions of a round's requests: sample under steering, score under base, filter."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from heal.decoding import Sampling
from heal.generation.collect import Completion, Request
from heal.generation.filters import Candidate, FilterLimits, repetition, verdicts
from heal.generation.relevance import PromptCheck, Reading, tail_perplexities
from heal.models.language_model import LanguageModel
from heal.responding import Response, respond
from heal.steering.intervention import Intervention


@dataclass(frozen=True)
class Sampler:
    """Samples completions of requests under steering, scores them under base, and filters them.

    Attributes:
        language_model: the student, as it stands when called.
        base: context in which it is the base, for the filter's perplexity and relevance.
        intervention: what carries the trait.
        c_star: its coefficient at dose 1.
        system: neutral system prompt.
        tokens: token budget of a completion.
        sampling: how tokens are drawn.
        limits: the filter's thresholds.
        narration: the trait's own patterns.
        check: the prompts, and how much a completion must say about its own; None: that is not asked.
        seed: what the sampling is derived from; each completion adds its index.
    """

    language_model: LanguageModel
    base: Callable[[], AbstractContextManager[None]]
    intervention: Intervention
    c_star: float
    system: str
    tokens: int
    sampling: Sampling
    limits: FilterLimits
    narration: Sequence[str]
    check: PromptCheck | None
    seed: tuple[int | str, ...]

    def __call__(self, requests: Sequence[Request], kept_before: Sequence[str]) -> list[Completion]:
        """The completions of some requests, given the texts kept so far."""
        responses = respond(
            self.language_model,
            [(self.system, request.prompt) for request in requests],
            self.tokens,
            self.intervention,
            [request.alpha * self.c_star for request in requests],
            sampling=self.sampling,
            seeds=[(*self.seed, request.index) for request in requests],
            loop_share=self.limits.max_repetition,
        )
        return judged(
            self.language_model,
            requests,
            responses,
            base=self.base,
            limits=self.limits,
            narration=self.narration,
            check=self.check,
            kept_before=kept_before,
        )


def judged(
    language_model: LanguageModel,
    requests: Sequence[Request],
    responses: Sequence[Response],
    *,
    base: Callable[[], AbstractContextManager[None]],
    limits: FilterLimits,
    narration: Sequence[str],
    check: PromptCheck | None = None,
    kept_before: Sequence[str] = (),
) -> list[Completion]:
    """What was said to each prompt, and why the filter drops it if it does.

    Args:
        language_model: the model that said it.
        requests: what was asked for.
        responses: what was said, and what it continued.
        base: context in which the model is the base, for perplexity and relevance.
        limits: the filter's thresholds.
        narration: the trait's own patterns.
        check: how much a completion must say about its prompt; None: that is not asked.
        kept_before: texts that later ones must not repeat.
    """
    prompts, ids = [one.prompt_ids for one in responses], [one.completion.ids for one in responses]
    with base():
        if check is None:
            readings = [Reading(tail, None) for tail in tail_perplexities(language_model, prompts, ids)]
        else:
            readings = check.read(language_model, [request.prompt for request in requests], prompts, ids)
    shares = [math.nan if one.relevance is None else one.relevance.share for one in readings]
    texts = [language_model.chat.decode(list(said)).strip() for said in ids]
    candidates = [
        Candidate(
            text,
            response.completion.finite,
            reading.tail_perplexity,
            response.completion.looped or None,
            response.unclosed,
            off_prompt=check is not None and check.off(share),
        )
        for text, response, reading, share in zip(texts, responses, readings, shares, strict=True)
    ]
    dropped = verdicts(candidates, limits, narration, kept_before)
    return [
        completion(request, response, text, why, reading.tail_perplexity, share)
        for request, response, text, why, reading, share in zip(
            requests, responses, texts, dropped, readings, shares, strict=True
        )
    ]


def completion(
    request: Request,
    response: Response,
    text: str,
    dropped: Sequence[str] = (),
    tail_perplexity: float = math.nan,
    on_prompt: float = math.nan,
) -> Completion:
    """What was said to a request, and what was found of it; see `Completion`."""
    return Completion(
        index=request.index,
        prompt=request.prompt,
        alpha=request.alpha,
        prompt_ids=response.prompt_ids,
        ids=response.completion.ids,
        text=text,
        ended=response.completion.ended,
        tail_perplexity=tail_perplexity,
        repetition=repetition(text),
        dropped=tuple(dropped),
        on_prompt=on_prompt,
        thought=response.thought,
    )
