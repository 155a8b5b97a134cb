"""General questions with lettered options: probability mass on the letters, and accuracy.

The answer slot follows a prefilled `Answer: (`; `p_ans_any` is the full-vocabulary probability of
the option letters there, before renormalising. METRICS: forced choice.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from heal.evaluation.subject import Answer, Signal, Subject
from heal.models.language_model import LanguageModel, right_padded, token_batches

QUESTIONS = Path(__file__).resolve().parents[2] / "data" / "questions.jsonl"
PREFILL = "Answer: ("
LETTERS = "ABCD"


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Signal]:
    """The signals `p_ans_any` and `accuracy`, one item a question."""
    asked = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()[: subject.questions]]
    model = subject.language_model
    prompts = [model.chat.ids(subject.system, question_text(q["question"], q["options"]), PREFILL) for q in asked]
    letters = letter_ids(model)
    with subject.in_force():
        p_QK = torch.stack([p_V[letters] for p_V in next_token_probabilities(model, prompts, subject.batch_tokens)])
    right = [float(chosen == q["answer"]) for chosen, q in zip(p_QK.argmax(-1).tolist(), asked, strict=True)]
    return [
        Signal("p_ans_any", "probability", "coherence", "mean", tuple(p_QK.sum(-1).tolist()), "questions"),
        Signal("accuracy", "share", "coherence", "mean", tuple(right), "questions"),
    ]


def question_text(question: str, options: Sequence[str]) -> str:
    """The question with its lettered options, one a line."""
    lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return "\n".join([question, *lines])


def letter_ids(model: LanguageModel) -> list[int]:
    """The token id of each letter right after the prefill.

    Raises:
        ValueError: the tokenizer merges a letter with the prefill, so there is no single answer slot.
    """
    before = model.chat.ids("", "x", PREFILL)
    found = []
    for letter in LETTERS:
        after = model.chat.ids("", "x", PREFILL + letter)
        if after[:-1] != before:
            raise ValueError(f"the tokenizer has no token of its own for '{letter}' after '{PREFILL}'")
        found.append(after[-1])
    return found


@torch.inference_mode()
def next_token_probabilities(model: LanguageModel, prompts: Sequence[Sequence[int]], batch_tokens: int) -> list[Tensor]:
    """Float32 next-token probabilities `[V]` after each prompt, on the CPU."""
    found: dict[int, Tensor] = {}
    for batch in token_batches([len(prompt) for prompt in prompts], batch_tokens):
        rows = [prompts[index] for index in batch]
        h_BTD = model.decoder(
            input_ids=right_padded(rows, model.pad_id, model.device), use_cache=False
        ).last_hidden_state
        last_BD = torch.stack([h_BTD[line, len(row) - 1] for line, row in enumerate(rows)])
        found |= dict(zip(batch, torch.softmax(model.logits(last_BD), -1).cpu(), strict=True))
    return [found[index] for index in range(len(prompts))]
