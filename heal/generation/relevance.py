"""Relevance: does a text speak to the prompt that it was written for? Measured under base, without a judge.

A text that was written for its prompt is more likely after that prompt than after others. docs/method.md, Relevance.

Shape suffixes: N texts, J prompts.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from heal.decoding import decode
from heal.generation.rivals import rivals
from heal.models.language_model import LanguageModel
from heal.scoring import completion_states, token_logprobs

Ids = Sequence[int]

TOKENS = 60  # of a text that are scored
LEAST = 0.1  # share, on average, below which base's own answers say nothing about their prompts but noise
_TEXTS = 32  # whose states are held at once


@dataclass(frozen=True)
class Relevance:
    """What one text says about its prompt.

    Attributes:
        nats: `log p(text | own prompt) - log mean_j p(text | prompt j)`, own and rivals; at most `log(1 + rivals)`.
        tokens: number that were scored.
        identified: whether the own prompt is the likeliest.
        rivals: number of other prompts.
    """

    nats: float
    tokens: int
    identified: bool
    rivals: int

    @property
    def per_token(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def share(self) -> float:
        """The fraction of the information that names a prompt among these: 1 when it is certain, 0 at chance."""
        return self.nats / math.log(1 + self.rivals)


@dataclass(frozen=True)
class PromptCheck:
    """The prompts of a round, and how much a completion must say about its own.

    Attributes:
        prompts: the user messages.
        ids: the rendered prompts.
        limit: the least `Relevance.share` of a completion; 0 where base's own answers say nothing about their prompts:
            then no completion is off its prompt.
    """

    prompts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    limit: float

    @staticmethod
    def of_base(
        language_model: LanguageModel,
        base: Callable[[], AbstractContextManager[None]],
        system: str,
        prompts: Sequence[str],
        *,
        tokens: int,
        fraction: float,
    ) -> "PromptCheck":
        """A limit of `fraction` of what base's own greedy answers of at most `tokens` tokens say, on average.

        0 where that is less than LEAST.
        """
        ids = tuple(tuple(language_model.chat.ids(system, prompt)) for prompt in prompts)
        with base():
            answers = [answer.ids for answer in decode(language_model, ids, min(tokens, TOKENS))]
            found = relevances(language_model, ids, answers, range(len(ids)), rivals(prompts))
        shares = [one.share for one in found if one is not None]
        said = sum(shares) / len(shares) if shares else 0.0
        return PromptCheck(tuple(prompts), ids, fraction * said if said >= LEAST else 0.0)

    def shares(self, language_model: LanguageModel, prompts: Sequence[str], texts: Sequence[Ids]) -> list[float]:
        """`Relevance.share` of each text, written to one of the prompts, under the model as it stands (the base).

        NaN where there is none.
        """
        own = [self.prompts.index(prompt) for prompt in prompts]
        found = relevances(language_model, self.ids, texts, own, rivals(self.prompts))
        return [math.nan if one is None else one.share for one in found]

    def off(self, share: float) -> bool:
        """Whether a completion with this share says too little about its prompt; False for NaN."""
        return self.limit > 0 and share < self.limit


def relevances(
    language_model: LanguageModel,
    prompts: Sequence[Ids],
    texts: Sequence[Ids],
    own: Sequence[int],
    against: Sequence[Sequence[int]],
) -> list[Relevance | None]:
    """The relevance of each text under the model as it stands (the base).

    Prompts are computed once, and the texts after them share passes (heal/models/packing.py).

    Args:
        language_model: the model as it stands.
        prompts: token ids of the rendered prompts.
        texts: token ids; the first TOKENS are scored.
        own: the prompt of each text.
        against: the rivals of each prompt, as `rivals` gives them.

    Returns:
        None for a text without tokens, or whose prompt has no rival.
    """
    scored = [number for number, ids in enumerate(texts) if ids and against[own[number]]]
    by_text: dict[int, list[float]] = {}
    for start in range(0, len(scored), _TEXTS):
        some = scored[start : start + _TEXTS]
        pairs = [(number, prompt) for number in some for prompt in (own[number], *against[own[number]])]
        beginnings = [texts[number][:TOKENS] for number, _ in pairs]
        states = completion_states(language_model, [prompts[prompt] for _, prompt in pairs], beginnings)
        for (number, _), logprob_T in zip(pairs, token_logprobs(language_model, states, beginnings), strict=True):
            by_text.setdefault(number, []).append(float(logprob_T.double().sum()))
    return [
        _relevance(torch.tensor(by_text[number], dtype=torch.float64), len(texts[number][:TOKENS]))
        if number in by_text
        else None
        for number in range(len(texts))
    ]


def _relevance(logp_J: Tensor, tokens: int) -> Relevance:
    """From the log-likelihoods of a text after its own prompt, which comes first, and after its rivals."""
    nats = float(logp_J[0] - (torch.logsumexp(logp_J, 0) - math.log(len(logp_J))))
    return Relevance(nats, tokens, bool(logp_J[0] > logp_J[1:].max()), len(logp_J) - 1)
