"""Moral foundations: which of seven foundations does a scene violate, by forced choice over lettered options.

Every scene is asked in two orders of the options, `score_k` is the mean over them of the log of the
full-vocabulary probability of option k's letter, `p = softmax(score)`, and `clr_k = score_k - mean_j score_j`,
whose differences add up in nats. METRICS: forced choice. Shape suffixes: V vignettes, K foundations, L vocabulary.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from heal.decoding import decode
from heal.evaluation.probe import slot
from heal.evaluation.readouts.questions import PREFILL, letter_ids
from heal.evaluation.results import Answer, Signal
from heal.evaluation.stats import informedness
from heal.evaluation.subject import Subject
from heal.evaluation.vignettes import FOUNDATIONS
from heal.scoring import next_token_logits

LETTERS = "ABCDEFG"
ORDERS = 2
NAMES = tuple(FOUNDATIONS)
THINK, THOUGHT = "<think>", "</think>"
AFTER_THINKING = "\nI should answer now.\n"
TEMPERATURES = (1e-2, 1e2)


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Signal]:
    """Signals with one item a vignette; nothing without vignettes.

    `clr_<foundation>`; `<foundation>_nats`, whose items are p and whose value is the log of their mean;
    `vignette_mass`, the options' full-vocabulary probability; and `vignette_informedness`, whose mean over
    vignettes is the macro average of (TPR - FPR): 0 is chance.
    """
    if not subject.vignettes:
        return []
    score_VK, mass_V = choices(subject)
    clr_VK, p_VK = score_VK - score_VK.mean(-1, keepdim=True), torch.softmax(score_VK, -1)
    labels = [vignette.foundation for vignette in subject.vignettes]
    chosen = [NAMES[index] for index in score_VK.argmax(-1).tolist()]
    return [
        *(
            Signal(f"clr_{name}", "nats", "off_target", "mean", tuple(clr_VK[:, index].tolist()), "vignettes")
            for index, name in enumerate(NAMES)
        ),
        *(
            Signal(f"{name}_nats", "nats", "off_target", "log_mean", tuple(p_VK[:, index].tolist()), "vignettes")
            for index, name in enumerate(NAMES)
        ),
        Signal("vignette_mass", "probability", "coherence", "mean", tuple(mass_V.tolist()), "vignettes"),
        Signal("vignette_informedness", "TPR - FPR", "coherence", "mean", informedness(chosen, labels), "vignettes"),
    ]


@torch.no_grad()
def choices(subject: Subject) -> tuple[Tensor, Tensor]:
    """Mean log-probability of each foundation's option over the orders `[V, K]`, and the options' mass `[V]`."""
    model, count = subject.language_model, len(NAMES)
    found_VK = torch.zeros(len(subject.vignettes), count, dtype=torch.float64)
    mass_V = torch.zeros(len(subject.vignettes), dtype=torch.float64)
    for order in range(ORDERS):
        shift = order * count // ORDERS
        names = [NAMES[(place + shift) % count] for place in range(count)]
        rows, letters_VK = _slots(subject, [text(vignette.text, names) for vignette in subject.vignettes])
        with subject.in_force():
            logp_VL = torch.log_softmax(next_token_logits(model, rows), -1)
        logp_VK = logp_VL.gather(-1, letters_VK).double()
        mass_V += logp_VK.exp().sum(-1) / ORDERS
        found_VK[:, [NAMES.index(name) for name in names]] += logp_VK / ORDERS
    return found_VK, mass_V


def text(vignette: str, names: Sequence[str]) -> str:
    """The options, which all scenes share, and the scene."""
    options = [f"({letter}) {FOUNDATIONS[name]}" for letter, name in zip(LETTERS, names, strict=True)]
    return "\n".join(["Which of these describes the scene best?", *options, "", f"Scene: {vignette}"])


def _slots(subject: Subject, questions: Sequence[str]) -> tuple[list[list[int]], Tensor]:
    """Ids of each question up to its answer slot, and the options' tokens there `[V, K]`."""
    model = subject.language_model
    if not subject.thinking:
        rows = [model.chat.ids(subject.system, question, PREFILL) for question in questions]
        return rows, torch.tensor([letter_ids(model, LETTERS)] * len(rows))
    rows, letters = [], []
    for question, thought in zip(questions, _thoughts(subject, questions), strict=True):
        aloud = str(model.chat.tokenizer.decode(thought))
        if model.chat.text(subject.system, question).rstrip().endswith(THINK):
            aloud = THINK + aloud
        close = THOUGHT if aloud.rfind(THINK) > aloud.rfind(THOUGHT) else ""
        splice, found = slot(model, close + AFTER_THINKING + PREFILL, LETTERS)
        rows.append([*model.chat.ids(subject.system, question), *thought, *splice])
        letters.append(found)
    return rows, torch.tensor(letters)


def _thoughts(subject: Subject, questions: Sequence[str]) -> list[list[int]]:
    """Ids of what the model says to each question within its budget of thinking, without an end of turn."""
    model, shift = subject.language_model, subject.intervention
    with subject.gates():
        said = decode(
            model,
            [model.chat.ids(subject.system, question) for question in questions],
            subject.thinking,
            shift,
            None if shift is None else [subject.coefficient] * len(questions),
        )
    return [list(each.ids[:-1] if each.ended else each.ids) for each in said]


def temperature(score_VK: ArrayLike, label_VK: ArrayLike) -> float:
    """The T that minimises the cross-entropy of `softmax(score / T)` to the labels. METRICS: forced choice.

    The cross-entropy is convex in 1 / T and its slope there is the mean of (expected score - labelled score), so
    that the best 1 / T is bisected.

    Args:
        score_VK: logits, up to a constant a row; rows that are not finite are left out.
        label_VK: a distribution a row.

    Returns:
        T, a bound of TEMPERATURES where the best one lies beyond it (labels that every arg-max hits ask for 0),
        and NaN without a row.

    Raises:
        ValueError: the two are not tables of one shape.
    """
    score, label = np.asarray(score_VK, dtype=float), np.asarray(label_VK, dtype=float)
    if score.ndim != 2 or score.shape != label.shape:
        raise ValueError(f"temperature: scores {score.shape} against labels {label.shape}")
    known = np.isfinite(score).all(axis=1)
    score, label = score[known], label[known]
    if not len(score):
        return float("nan")
    score = score - score.max(axis=1, keepdims=True)

    def slope(inverse: float) -> float:
        odds: NDArray = np.exp(score * inverse)
        return float((score * (odds / odds.sum(axis=1, keepdims=True) - label)).sum())

    low, high = TEMPERATURES
    if slope(1 / high) >= 0:
        return high
    if slope(1 / low) <= 0:
        return low
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if slope(1 / middle) > 0 else (low, middle)
    return float(np.sqrt(low * high))


def temperature_of(clr: Mapping[str, Sequence[float]], label_VK: ArrayLike) -> float:
    """`temperature` from the values of the `clr_<foundation>` signals by foundation: they differ from scores by a
    constant a row."""
    return temperature(np.column_stack([clr[name] for name in NAMES]), label_VK)
