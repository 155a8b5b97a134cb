"""Likelihoods of texts by the plain transformers model: one dense pass a text and prompt, in float64."""

import math
import random
from collections.abc import Sequence

import torch

from heal.models.language_model import LanguageModel

Ids = Sequence[int]

TOKENS = 60  # of a text that relevance looks at
NATS = 0.02  # log-likelihoods of some hundred nats, each rounded in float32, and their difference
ASKED = (  # no two of them alike
    "How do bees make honey?",
    "Write a limerick about the sea.",
    "Which tools repair a bicycle?",
    "Why was Rome founded there?",
    "Say something kind to your neighbour.",
    "Can penguins fly?",
)


def rendered(language_model: LanguageModel, asked: Sequence[str] = ASKED, system: str = "") -> list[list[int]]:
    """Token ids of the prompts."""
    return [language_model.chat.ids(system, prompt) for prompt in asked]


def texts(count: int, longest: int = 80) -> list[tuple[int, ...]]:
    """Texts of random tokens, of 1 to `longest` of them."""
    draws = random.Random(0)
    lengths = [1 + index * (longest - 1) // max(1, count - 1) for index in range(count)]
    return [tuple(draws.randrange(3, 259) for _ in range(length)) for length in lengths]


@torch.no_grad()
def logp(language_model: LanguageModel, prompt: Ids, text: Ids, tokens: int = TOKENS) -> float:
    """Log-likelihood of the beginning of a text after a prompt."""
    text = list(text[:tokens])
    logits_TV = language_model.model(input_ids=torch.tensor([[*prompt, *text]])).logits[0].double()
    return float(torch.log_softmax(logits_TV, -1)[len(prompt) - 1 : -1][range(len(text)), text].sum())


def about_prompt(
    language_model: LanguageModel, text: Ids, own: Ids, others: Sequence[Ids], tokens: int = TOKENS
) -> tuple[float, bool]:
    """Nats that the text says about its own prompt, and whether that is the likeliest."""
    mine, *theirs = (logp(language_model, prompt, text, tokens) for prompt in (own, *others))
    return -math.log(sum(math.exp(other - mine) for other in (mine, *theirs)) / (1 + len(theirs))), mine > max(theirs)


def about_prompts(
    language_model: LanguageModel, said: Sequence[Ids], asked: Sequence[Ids], tokens: int = TOKENS
) -> list[tuple[float, bool]]:
    """The same of one text a prompt, each held against all the others."""
    return [
        about_prompt(language_model, text, asked[own], [*asked[:own], *asked[own + 1 :]], tokens)
        for own, text in enumerate(said)
    ]


@torch.no_grad()
def greedy(language_model: LanguageModel, prompt: Ids, tokens: int) -> list[int]:
    """What the model says, token by token; its end of turn included."""
    said: list[int] = []
    while len(said) < tokens and not language_model.end_ids & set(said):
        said.append(int(language_model.model(input_ids=torch.tensor([[*prompt, *said]])).logits[0, -1].argmax()))
    return said
