"""General questions with lettered options: probability mass on the letters, and accuracy.

The answer slot follows a prefilled `Answer: (`; `p_ans_any` is the full-vocabulary probability of
the option letters there, before renormalising. docs/method.md, Forced choice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from heal.evaluation.signal import MASS, ForcedChoice, Limit, Measured, Signal

if TYPE_CHECKING:
    from heal.evaluation.results import Answer
    from heal.evaluation.subject import Subject
    from heal.models.language_model import LanguageModel

QUESTIONS = Path(__file__).resolve().parents[2] / "data" / "questions.jsonl"
PREFILL = "Answer: ("
LETTERS = "ABCD"
SCORABLE = 0.5  # mass on the letters under which an answer cannot be scored

P_ANS_ANY = Signal(
    MASS,
    unit="probability",
    title="p_ans_any",
    note="mean mass on valid answers",
    detail="mean probability mass on the option letters at the answer slot of the general questions; 1 is intact",
    role="coherence",
    better="higher",
    items="questions",
    limit=Limit(
        "min_p_ans_any",
        0.85,
        "coherence floor: mean mass on valid answers",
        kind="floor",
        words="p_ans_any {:.2f}",
        minimum=0,
        maximum=1,
    ),
    validity=ForcedChoice(MASS),
    headline=True,
    order=1,
)
UNSCORABLE = Signal(
    "unscorable_share",
    unit="share",
    title="Unscorable",
    note="fraction of questions",
    detail=f"fraction of the general questions with less than {SCORABLE:g} of the mass on the option letters",
    role="coherence",
    better="lower",
    items="questions",
    digits=2,
    validity=ForcedChoice(MASS),
    order=1,
)
ACCURACY = Signal(
    "accuracy",
    unit="share",
    title="Accuracy",
    note="general questions",
    detail=f"fraction of the general questions answered right; chance is {1 / len(LETTERS):g}",
    role="coherence",
    better="higher",
    items="questions",
    digits=2,
    validity=ForcedChoice(MASS, "question_informedness"),
    fall="accuracy {:+.2f} on general questions",
    chance=1 / len(LETTERS),
    aside=True,
)
INFORMEDNESS = Signal(
    "question_informedness",
    unit="TPR - FPR",
    title="Informedness",
    note="general questions",
    detail="hits less false alarms of the letter chosen, averaged over the letters; 0 is chance",
    role="coherence",
    better="higher",
    items="questions",
    digits=2,
    validity=ForcedChoice(MASS, "question_informedness"),
    chance=0.0,
    aside=True,
)
SIGNALS = (P_ANS_ANY, UNSCORABLE, ACCURACY, INFORMEDNESS)


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Measured]:
    """One item a question."""
    import torch

    from heal.evaluation.stats import informedness
    from heal.scoring import next_token_logits

    setup, model = subject.setup, subject.setup.language_model
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()[: setup.questions]]
    prompts = [model.chat.ids(subject.system, question_text(q["question"], q["options"]), PREFILL) for q in rows]
    letters = letter_ids(model)
    with subject.in_force():
        p_QK = torch.softmax(next_token_logits(model, prompts), -1)[:, letters]
    chosen, right = p_QK.argmax(-1).tolist(), [q["answer"] for q in rows]
    mass = p_QK.sum(-1).tolist()
    return [
        P_ANS_ANY.measured(mass),
        UNSCORABLE.measured([float(of_letters < SCORABLE) for of_letters in mass]),
        ACCURACY.measured([float(letter == answer) for letter, answer in zip(chosen, right, strict=True)]),
        INFORMEDNESS.measured(informedness(chosen, right)),
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
    ids = []
    for letter in letters:
        after = model.chat.ids("", "x", PREFILL + letter)
        if after[:-1] != before:
            raise ValueError(f"the tokenizer has no token of its own for '{letter}' after '{PREFILL}'")
        ids.append(after[-1])
    return ids
