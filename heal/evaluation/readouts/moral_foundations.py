"""Moral foundations: which of seven foundations does a scene violate, by forced choice.

`score_k` is what the way of asking that was chosen for the model gives foundation k, in nats; `p = softmax(score)`, and
`clr_k = score_k - mean_j score_j`, whose differences add up. docs/method.md, Forced choice.

Shape suffixes: V vignettes, K foundations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from heal.evaluation.signal import ForcedChoiceRule, Measured, Signal
from heal.evaluation.vignettes import APART, FOUNDATIONS, Vignette, read_vignettes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from heal.evaluation.asking.way import ForcedChoice, Item
    from heal.evaluation.results import Answer
    from heal.evaluation.subject import Setup, Subject

NAMES = tuple(FOUNDATIONS)
TEMPERATURES = (1e-2, 1e2)
CHOICE = "moral foundations"


def _words(name: str) -> str:
    return name.replace("_", " ")


_VALIDITY = ForcedChoiceRule("vignette_mass", "vignette_informedness", CHOICE)

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
    detail="mean probability mass on the options at the answer slot of the scenes; none where no slot is asked",
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
    `vignette_mass`, the options' full-vocabulary probability, where there is a slot; and `vignette_informedness`, whose
    mean over vignettes is the macro average of (TPR - FPR): 0 is chance.
    """
    import torch

    from heal.evaluation.asking.way import ask
    from heal.evaluation.stats import informedness

    vignettes = subject.setup.vignettes
    if not vignettes:
        return []
    scored = ask(choice(subject.setup), subject, items_of(vignettes))
    score_VK = scored.score_NK
    clr_VK, p_VK = score_VK - score_VK.mean(-1, keepdim=True), torch.softmax(score_VK, -1)
    right = [NAMES.index(vignette.foundation) for vignette in vignettes]
    return [
        *(CLR[name].measured(clr_VK[:, index].tolist()) for index, name in enumerate(NAMES)),
        *(NATS[name].measured(p_VK[:, index].tolist()) for index, name in enumerate(NAMES)),
        *([] if scored.mass_N is None else [VIGNETTE_MASS.measured(scored.mass_N.tolist())]),
        VIGNETTE_INFORMEDNESS.measured(informedness(scored.chosen(), right)),
    ]


def choice(setup: Setup) -> ForcedChoice:
    """The foundations as a forced choice."""
    from heal.evaluation.asking.letters import Letters
    from heal.evaluation.asking.way import ForcedChoice
    from heal.evaluation.asking.words import Words
    from heal.evaluation.asking.yes_no import YesNoEach

    before = Letters("letters, options first", 2, options_first, aloud=True)
    label, prefill = "words after 'The main thing that is wrong here is '", "The main thing that is wrong here is "
    ways = (
        Words(label, str, prefill, relative=True),
        Words(label, str, prefill),
        Letters("letters, options first", len(NAMES), options_first, aloud=True, also=(before.orders,)),
        before,
        Letters("letters, scene first", len(NAMES), scene_first, aloud=True),
        YesNoEach("yes or no for each", is_it),
    )
    return ForcedChoice(
        CHOICE,
        {way.name: way for way in ways},
        items_of(read_vignettes(APART)),
        before.name,
        centred=True,
        asked=bool(setup.vignettes),
    )


def items_of(vignettes: Sequence[Vignette]) -> tuple[Item, ...]:
    """The scenes, each with the seven foundations as its options."""
    from heal.evaluation.asking.way import Item

    options = tuple(FOUNDATIONS.values())
    return tuple(Item(vignette.text, options, NAMES.index(vignette.foundation)) for vignette in vignettes)


def options_first(scene: str, options: str) -> str:
    """The options, which all scenes share, and the scene."""
    return f"Which of these describes the scene best?\n{options}\n\nScene: {scene}"


def scene_first(scene: str, options: str) -> str:
    """The scene, which all orders share, and the options."""
    return f"Scene: {scene}\n\nWhich of these describes the scene best?\n{options}"


def is_it(scene: str, option: str) -> str:
    """The scene, and whether it is an example of one option."""
    return f"Scene: {scene}\nIs this an example of {option}?"


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
