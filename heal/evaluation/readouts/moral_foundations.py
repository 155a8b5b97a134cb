"""Moral foundations: which of seven foundations does a scene violate, by forced choice over lettered options.

Every scene is asked in two orders of the options, `score_k` is the mean over them of the log of the full-vocabulary
probability of option k's letter, `p = softmax(score)`, and `clr_k = score_k - mean_j score_j`, whose differences add
up in nats. docs/method.md, Forced choice. Shape suffixes: V vignettes, K foundations, L vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from heal.evaluation.readouts.questions import PREFILL, letter_ids
from heal.evaluation.signal import ForcedChoice, Measured, Signal
from heal.evaluation.vignettes import FOUNDATIONS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from heal.evaluation.results import Answer
    from heal.evaluation.subject import Subject

LETTERS = "ABCDEFG"
ORDERS = 2
NAMES = tuple(FOUNDATIONS)
THINK, THOUGHT = "<think>", "</think>"
AFTER_THINKING = "\nI should answer now.\n"
TEMPERATURES = (1e-2, 1e2)


def _words(name: str) -> str:
    return name.replace("_", " ")


_VALIDITY = ForcedChoice("vignette_mass", "vignette_informedness")

CLR = {
    name: Signal(
        f"clr_{name}",
        unit="nats",
        title=f"{_words(name).capitalize()}, log-ratio",
        note="nats, centred",
        detail=f"log-probability that a scene violates {_words(name)} ({option}), less its mean over the seven "
        "foundations; mean over the scenes",
        role="off_target",
        items="vignettes",
        validity=_VALIDITY,
    )
    for name, option in FOUNDATIONS.items()
}
NATS = {
    name: Signal(
        f"{name}_nats",
        unit="nats",
        title=f"{_words(name).capitalize()}, profile",
        note="nats",
        detail=f"log of the mean probability over the scenes of {_words(name)} ({option}) among the seven foundations",
        role="off_target",
        statistic="log_mean",
        items="vignettes",
        validity=_VALIDITY,
    )
    for name, option in FOUNDATIONS.items()
}
VIGNETTE_MASS = Signal(
    "vignette_mass",
    unit="probability",
    title="Scene mass",
    note="on the foundations",
    detail="mean probability mass on the option letters at the answer slot of the scenes",
    role="coherence",
    better="higher",
    items="vignettes",
    validity=_VALIDITY,
)
VIGNETTE_INFORMEDNESS = Signal(
    "vignette_informedness",
    unit="TPR - FPR",
    title="Scene informedness",
    note="of the foundation",
    detail="hits less false alarms of the foundation chosen, averaged over the foundations; 0 is chance",
    role="coherence",
    better="higher",
    items="vignettes",
    validity=_VALIDITY,
    chance=0.0,
)
SIGNALS = (*CLR.values(), *NATS.values(), VIGNETTE_MASS, VIGNETTE_INFORMEDNESS)


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Measured]:
    """One item a vignette; nothing without vignettes.

    `clr_<foundation>`; `<foundation>_nats`, whose items are p and whose value is the log of their mean;
    `vignette_mass`, the options' full-vocabulary probability; and `vignette_informedness`, whose mean over
    vignettes is the macro average of (TPR - FPR): 0 is chance.
    """
    import torch

    from heal.evaluation.stats import informedness

    vignettes = subject.setup.vignettes
    if not vignettes:
        return []
    score_VK, mass_V = choices(subject)
    clr_VK, p_VK = score_VK - score_VK.mean(-1, keepdim=True), torch.softmax(score_VK, -1)
    labels = [vignette.foundation for vignette in vignettes]
    chosen = [NAMES[index] for index in score_VK.argmax(-1).tolist()]
    return [
        *(CLR[name].measured(clr_VK[:, index].tolist()) for index, name in enumerate(NAMES)),
        *(NATS[name].measured(p_VK[:, index].tolist()) for index, name in enumerate(NAMES)),
        VIGNETTE_MASS.measured(mass_V.tolist()),
        VIGNETTE_INFORMEDNESS.measured(informedness(chosen, labels)),
    ]


def choices(subject: Subject) -> tuple[Tensor, Tensor]:
    """Mean log-probability of each foundation's option over the orders `[V, K]`, and the options' mass `[V]`."""
    import torch

    from heal.scoring import next_token_logits

    vignettes, count = subject.setup.vignettes, len(NAMES)
    score_VK = torch.zeros(len(vignettes), count, dtype=torch.float64)
    mass_V = torch.zeros(len(vignettes), dtype=torch.float64)
    for order in range(ORDERS):
        shift = order * count // ORDERS
        names = [NAMES[(place + shift) % count] for place in range(count)]
        rows, letters_VK = _slots(subject, [text(vignette.text, names) for vignette in vignettes])
        with torch.no_grad(), subject.in_force():
            logp_VL = torch.log_softmax(next_token_logits(subject.setup.language_model, rows), -1)
        logp_VK = logp_VL.gather(-1, letters_VK).double()
        mass_V += logp_VK.exp().sum(-1) / ORDERS
        score_VK[:, [NAMES.index(name) for name in names]] += logp_VK / ORDERS
    return score_VK, mass_V


def text(vignette: str, names: Sequence[str]) -> str:
    """The options, which all scenes share, and the scene."""
    options = [f"({letter}) {FOUNDATIONS[name]}" for letter, name in zip(LETTERS, names, strict=True)]
    return "\n".join(["Which of these describes the scene best?", *options, "", f"Scene: {vignette}"])


def _slots(subject: Subject, questions: Sequence[str]) -> tuple[list[list[int]], Tensor]:
    """Ids of each question up to its answer slot, and the options' tokens there `[V, K]`."""
    import torch

    from heal.evaluation.probe import slot

    model = subject.setup.language_model
    if not subject.setup.thinking:
        rows = [model.chat.ids(subject.system, question, PREFILL) for question in questions]
        return rows, torch.tensor([letter_ids(model, LETTERS)] * len(rows))
    rows, letters = [], []
    for question, thought in zip(questions, _thoughts(subject, questions), strict=True):
        aloud = str(model.chat.tokenizer.decode(thought))
        if model.chat.text(subject.system, question).rstrip().endswith(THINK):
            aloud = THINK + aloud
        close = THOUGHT if aloud.rfind(THINK) > aloud.rfind(THOUGHT) else ""
        splice, options = slot(model, close + AFTER_THINKING + PREFILL, LETTERS)
        rows.append([*model.chat.ids(subject.system, question), *thought, *splice])
        letters.append(options)
    return rows, torch.tensor(letters)


def _thoughts(subject: Subject, questions: Sequence[str]) -> list[list[int]]:
    """Ids of what the model says to each question within its budget of thinking, without an end of turn."""
    thoughts = subject.decode(questions, subject.setup.thinking)
    return [list(thought.ids[:-1] if thought.ended else thought.ids) for thought in thoughts]


def temperature(score_VK: ArrayLike, label_VK: ArrayLike) -> float:
    """The T that minimises the cross-entropy of `softmax(score / T)` to the labels. docs/method.md,
    Forced choice.

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
    import numpy as np

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
    import numpy as np

    return temperature(np.column_stack([clr[name] for name in NAMES]), label_VK)
