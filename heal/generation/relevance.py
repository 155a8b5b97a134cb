"""Relevance: does a text speak to the prompt that it was written for? Measured under base, without a judge.

A text that was written for its prompt is more likely after that prompt than after others. docs/method.md, Relevance.

Shape suffixes: N texts, J prompts.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from heal.generation.filters import tail_length
from heal.generation.rivals import rivals
from heal.models.language_model import LanguageModel
from heal.parallel import over_rows
from heal.responding import respond
from heal.scoring import completion_states, token_logprobs

Ids = Sequence[int]

TOKENS = 60  # of a text that are scored, at most
LEAST = 0.1  # share, in the median, below which base's own answers say nothing about their prompts but noise
_ROWS = 192  # a text after a prompt, whose states are held at once


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
class Reading:
    """What base's likelihood says about one text.

    Attributes:
        tail_perplexity: of its last quarter after its own prompt; NaN for a text without tokens.
        relevance: None for a text without tokens, or whose prompt has no rival.
    """

    tail_perplexity: float
    relevance: Relevance | None


def beginning(budget: int) -> int:
    """How many first tokens of a text are scored whose budget is so many: half of them, at most TOKENS."""
    return min(TOKENS, -(-budget // 2))


@dataclass(frozen=True)
class PromptCheck:
    """The prompts of a round, and how much a completion must say about its own.

    Attributes:
        prompts: the user messages.
        ids: the rendered prompts.
        tokens: so many of a completion's first tokens are scored.
        limit: the least `Relevance.share` of a completion; 0 where base's own answers say nothing about their prompts:
            then no completion is off its prompt.
    """

    prompts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    tokens: int
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
        """A limit of `fraction` of what base's own greedy answers of at most `tokens` tokens say, in the median.

        0 where that is less than LEAST.
        """
        ids = tuple(tuple(language_model.chat.ids(system, prompt)) for prompt in prompts)
        scored = beginning(tokens)
        with base():
            said = respond(language_model, [(system, prompt) for prompt in prompts], scored)
            answers = [response.completion.ids for response in said]
            found = read_texts(language_model, ids, answers, range(len(ids)), rivals(prompts), scored)
        shares = [one.relevance.share for one in found if one.relevance is not None]
        share = median(shares) if shares else 0.0  # one answer astray has a share without a lower bound
        return PromptCheck(tuple(prompts), ids, scored, fraction * share if share >= LEAST else 0.0)

    def read(
        self, language_model: LanguageModel, prompts: Sequence[str], contexts: Sequence[Ids], texts: Sequence[Ids]
    ) -> list[Reading]:
        """The reading of each text under the model as it stands (the base).

        Args:
            language_model: the model.
            prompts: that each text was written to, of those here.
            contexts: token ids that it continued: the prompt, with the thought if there was one.
            texts: token ids.
        """
        own = [self.prompts.index(prompt) for prompt in prompts]
        return read_in_context(language_model, self.ids, contexts, texts, own, rivals(self.prompts), self.tokens)

    def off(self, share: float) -> bool:
        """Whether a completion with this share says too little about its prompt; False for NaN."""
        return self.limit > 0 and share < self.limit


def read_texts(
    language_model: LanguageModel,
    prompts: Sequence[Ids],
    texts: Sequence[Ids],
    own: Sequence[int],
    against: Sequence[Sequence[int]],
    tokens: int = TOKENS,
) -> list[Reading]:
    """Tail perplexity and relevance of each text under the model as it stands (the base), in one go.

    Prompts are computed once, and the texts after them share passes (heal/models/packing.py).

    Args:
        language_model: the model as it stands.
        prompts: token ids of the rendered prompts.
        texts: token ids.
        own: the prompt of each text.
        against: the rivals of each prompt, as `rivals` gives them.
        tokens: so many of a text's first tokens are scored for its relevance.
    """
    scored = [number for number, ids in enumerate(texts) if ids]
    step = max(1, _ROWS // (1 + max(map(len, against), default=0)))

    def read(some: Sequence[int]) -> list[Reading]:
        pairs = [(number, prompt) for number in some for prompt in (own[number], *against[own[number]])]
        # Rivals are held against the beginning alone, the own prompt against the tail as well.
        said = [texts[number] if prompt == own[number] else texts[number][:tokens] for number, prompt in pairs]
        states = completion_states(language_model, [prompts[prompt] for _, prompt in pairs], said)
        tails = [tail_length(len(texts[number])) for number in some]
        whole = [h_ND for h_ND, (number, prompt) in zip(states, pairs, strict=True) if prompt == own[number]]
        logprobs = token_logprobs(
            language_model,
            [h_ND[:tokens] for h_ND in states] + [h_ND[-tail:] for h_ND, tail in zip(whole, tails, strict=True)],
            [ids[:tokens] for ids in said] + [texts[number][-tail:] for number, tail in zip(some, tails, strict=True)],
        )
        sums: dict[int, list[float]] = {}
        for (number, _), logprob_T in zip(pairs, logprobs, strict=False):
            sums.setdefault(number, []).append(float(logprob_T.double().sum()))
        found = []
        for number, tail_T in zip(some, logprobs[len(pairs) :], strict=True):
            logp_J = torch.tensor(sums[number], dtype=torch.float64)
            relevance = _relevance(logp_J, len(texts[number][:tokens])) if len(logp_J) > 1 else None
            found.append(Reading(perplexity(tail_T), relevance))
        return found

    def in_steps(share: range) -> list[Reading]:
        mine = [scored[place] for place in share]
        return [one for start in range(0, len(mine), step) for one in read(mine[start : start + step])]

    readings = dict.fromkeys(range(len(texts)), Reading(math.nan, None))
    readings |= zip(scored, over_rows(len(scored), in_steps), strict=True)
    return list(readings.values())


def read_in_context(
    language_model: LanguageModel,
    prompts: Sequence[Ids],
    contexts: Sequence[Ids],
    texts: Sequence[Ids],
    own: Sequence[int],
    against: Sequence[Sequence[int]],
    tokens: int = TOKENS,
) -> list[Reading]:
    """As `read_texts`, but the tail of each text is read after the context that it continued.

    Relevance is asked of the prompts alone: after its own thought any text is likelier than after another prompt.
    """
    readings = read_texts(language_model, prompts, texts, own, against, tokens)
    if all(tuple(context) == tuple(prompts[prompt]) for context, prompt in zip(contexts, own, strict=True)):
        return readings
    tails = tail_perplexities(language_model, contexts, texts)
    return [Reading(tail, reading.relevance) for tail, reading in zip(tails, readings, strict=True)]


def tail_perplexities(language_model: LanguageModel, prompts: Sequence[Ids], texts: Sequence[Ids]) -> list[float]:
    """Perplexity of the last quarter of each text after its prompt under the model as it stands; NaN where empty."""
    alone = read_texts(language_model, prompts, texts, range(len(texts)), [[] for _ in texts], tokens=0)
    return [reading.tail_perplexity for reading in alone]


def perplexity(logprob_T: Tensor) -> float:
    """Of tokens with these log-probabilities."""
    return math.exp(min(-float(logprob_T.double().mean()), 700.0))


def _relevance(logp_J: Tensor, tokens: int) -> Relevance:
    """From the log-likelihoods of a text after its own prompt, which comes first, and after its rivals."""
    nats = float(logp_J[0] - (torch.logsumexp(logp_J, 0) - math.log(len(logp_J))))
    return Relevance(nats, tokens, bool(logp_J[0] > logp_J[1:].max()), len(logp_J) - 1)
