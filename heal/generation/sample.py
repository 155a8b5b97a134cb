"""Makes the completions of a round's requests: sample under steering, score under base, filter."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from heal.decoding import Decoded, Sampling, decode
from heal.generation.collect import Completion, Request
from heal.generation.filters import Candidate, FilterLimits, repetition, tail_length, verdicts
from heal.generation.relevance import PromptCheck
from heal.models.language_model import LanguageModel
from heal.scoring import completion_states, token_logprobs
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
        prompts = [self.language_model.chat.ids(self.system, request.prompt) for request in requests]
        completions = decode(
            self.language_model,
            prompts,
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
            prompts,
            completions,
            base=self.base,
            limits=self.limits,
            narration=self.narration,
            check=self.check,
            kept_before=kept_before,
        )


def judged(
    language_model: LanguageModel,
    requests: Sequence[Request],
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Decoded],
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
        prompts: token ids that each completion continued.
        completions: what was said.
        base: context in which the model is the base, for perplexity and relevance.
        limits: the filter's thresholds.
        narration: the trait's own patterns.
        check: how much a completion must say about its prompt; None: that is not asked.
        kept_before: texts that later ones must not repeat.
    """
    ids = [completion.ids for completion in completions]
    with base():
        perplexities = tail_perplexities(language_model, prompts, ids)
        shares = [math.nan] * len(ids)
        if check is not None:
            shares = check.shares(language_model, [request.prompt for request in requests], ids)
    texts = [language_model.chat.decode(list(completion)).strip() for completion in ids]
    candidates = [
        Candidate(text, completion.finite, perplexity, completion.looped, check is not None and check.off(share))
        for text, completion, perplexity, share in zip(texts, completions, perplexities, shares, strict=True)
    ]
    dropped = verdicts(candidates, limits, narration, kept_before)
    return [
        Completion(
            index=request.index,
            prompt=request.prompt,
            alpha=request.alpha,
            prompt_ids=tuple(prompt),
            ids=completion.ids,
            text=text,
            ended=completion.ended,
            tail_perplexity=perplexity,
            repetition=repetition(text),
            dropped=tuple(why),
            on_prompt=share,
        )
        for request, prompt, completion, text, perplexity, why, share in zip(
            requests, prompts, completions, texts, perplexities, dropped, shares, strict=True
        )
    ]


def tail_perplexities(
    language_model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
) -> list[float]:
    """Perplexity of the last quarter of each completion under the model as it stands; NaN where empty."""
    rows = [row for row, ids in enumerate(completions) if ids]
    states = completion_states(language_model, [prompts[row] for row in rows], [completions[row] for row in rows])
    tails = [tail_length(len(completions[row])) for row in rows]
    logprobs = token_logprobs(
        language_model,
        [h_ND[-tail:] for h_ND, tail in zip(states, tails, strict=True)],
        [completions[row][-tail:] for row, tail in zip(rows, tails, strict=True)],
    )
    by_row = dict(zip(rows, map(_perplexity, logprobs), strict=True))
    return [by_row.get(row, math.nan) for row in range(len(completions))]


def _perplexity(logprob_N: Tensor) -> float:
    return math.exp(min(-float(logprob_N.double().mean()), 700.0))
