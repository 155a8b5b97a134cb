"""General questions with lettered options: probability mass on the letters, and accuracy.

The answer slot follows a prefilled `Answer: (`; `p_ans_any` is the full-vocabulary probability of
the option letters there, before renormalising. METRICS: forced choice.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from heal.evaluation.results import Answer, Signal
from heal.evaluation.stats import informedness
from heal.evaluation.subject import Subject
from heal.models.language_model import LanguageModel
from heal.scoring import next_token_logits

QUESTIONS = Path(__file__).resolve().parents[2] / "data" / "questions.jsonl"
PREFILL = "Answer: ("
LETTERS = "ABCD"
SCORABLE = 0.5  # mass on the letters under which an answer cannot be scored


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Signal]:
    """`p_ans_any`, `unscorable_share`, `accuracy` and `question_informedness`, one item a question."""
    asked = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()[: subject.questions]]
    model = subject.language_model
    prompts = [model.chat.ids(subject.system, question_text(q["question"], q["options"]), PREFILL) for q in asked]
    letters = letter_ids(model)
    with subject.in_force():
        p_QK = torch.softmax(next_token_logits(model, prompts), -1)[:, letters]
    chosen, answer = p_QK.argmax(-1).tolist(), [q["answer"] for q in asked]
    right = [float(one == other) for one, other in zip(chosen, answer, strict=True)]
    told = informedness(chosen, answer)
    unscorable = tuple(float(mass < SCORABLE) for mass in p_QK.sum(-1).tolist())
    return [
        Signal("p_ans_any", "probability", "coherence", "mean", tuple(p_QK.sum(-1).tolist()), "questions"),
        Signal("unscorable_share", "share", "coherence", "mean", unscorable, "questions"),
        Signal("accuracy", "share", "coherence", "mean", tuple(right), "questions"),
        Signal("question_informedness", "TPR - FPR", "coherence", "mean", told, "questions"),
    ]


def question_text(question: str, options: Sequence[str]) -> str:
    """The question with its lettered options, one a line."""
    lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return "\n".join([question, *lines])


def letter_ids(model: LanguageModel, letters: str = LETTERS) -> list[int]:
    """The token id of each letter right after the prefill.

    Raises:
        ValueError: the tokenizer merges a letter with the prefill, so there is no single answer slot.
    """
    before = model.chat.ids("", "x", PREFILL)
    found = []
    for letter in letters:
        after = model.chat.ids("", "x", PREFILL + letter)
        if after[:-1] != before:
            raise ValueError(f"the tokenizer has no token of its own for '{letter}' after '{PREFILL}'")
        found.append(after[-1])
    return found
