"""Do answers end within the token budget of a completion: lengths of base's answers, cut off late."""

import math
from dataclasses import dataclass, replace

import numpy as np

from heal.evaluation.results import Answer
from heal.evaluation.subject import Setup, Subject
from heal.progress import Progress, silent

LONGER = 3  # times the budget in which answers are let run on, to see how long they are


@dataclass(frozen=True)
class Endings:
    """How long base's greedy answers to generation prompts are.

    Attributes:
        budget: tokens of a completion, by the recipe.
        within: fraction of the answers that end within it.
        looked: tokens after which an answer was cut off here.
        p90: the length, in tokens, within which nine of ten answers end; None where it is more than `looked`.
        n: answers.
    """

    budget: int
    within: float
    looked: int
    p90: int | None
    n: int


def endings(setup: Setup, progress: Progress = silent) -> tuple[Endings, list[Answer]]:
    """The lengths of base's answers to the setup's prompts, and those answers within the setup's budget.

    A greedy answer in fewer tokens is the beginning of the same answer in more.
    """
    model, budget = setup.language_model, setup.tokens
    longest = max(model.longest_prompt(setup.system, prompt) for prompt in setup.prompts)
    looked = max(budget, min(LONGER * budget, model.context - longest - model.thinking))
    answers = Subject(replace(setup, tokens=looked), "base", setup.base).answer(progress)
    lengths = [len(answer.ids) if answer.ended else math.inf for answer in answers]
    p90 = float(np.quantile(lengths, 0.9, method="higher"))
    within = sum(length <= budget for length in lengths) / len(lengths)
    found = Endings(budget, within, looked, int(p90) if math.isfinite(p90) else None, len(answers))
    return found, [_cut(setup, answer) for answer in answers]


def _cut(setup: Setup, answer: Answer) -> Answer:
    ids = answer.ids[: setup.tokens]
    text = setup.language_model.chat.decode(list(ids)).strip()
    return replace(answer, ids=ids, text=text, ended=answer.ended and len(answer.ids) <= setup.tokens)
