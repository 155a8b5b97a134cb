"""Moral foundations: which of seven foundations does a scene violate, by forced choice over lettered options.

Every scene is asked in two orders of the options, `score_k` is the mean over them of the log of the
full-vocabulary probability of option k's letter, and `clr_k = score_k - mean_j score_j`, whose differences
add up in nats. METRICS: forced choice.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from heal.evaluation.readouts.questions import PREFILL, letter_ids
from heal.evaluation.subject import Answer, Signal, Subject
from heal.evaluation.vignettes import FOUNDATIONS
from heal.scoring import next_token_logits

LETTERS = "ABCDEFG"
ORDERS = 2
NAMES = tuple(FOUNDATIONS)


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Signal]:
    """`clr_<foundation>`, `vignette_mass` and `vignette_informedness`, one item a vignette; nothing without vignettes.

    The mean of `vignette_informedness` over vignettes is the macro average of (TPR - FPR): 0 is chance.
    """
    if not subject.vignettes:
        return []
    logp_VK, mass_V = choices(subject)
    clr_VK = logp_VK - logp_VK.mean(-1, keepdim=True)
    labels = [vignette.foundation for vignette in subject.vignettes]
    chosen = [NAMES[index] for index in logp_VK.argmax(-1).tolist()]
    signals = [
        Signal(f"clr_{name}", "nats", "off_target", "mean", tuple(clr_VK[:, index].tolist()), "vignettes")
        for index, name in enumerate(NAMES)
    ]
    return [
        *signals,
        Signal("vignette_mass", "probability", "coherence", "mean", tuple(mass_V.tolist()), "vignettes"),
        Signal("vignette_informedness", "TPR - FPR", "coherence", "mean", informedness(chosen, labels), "vignettes"),
    ]


@torch.no_grad()
def choices(subject: Subject) -> tuple[Tensor, Tensor]:
    """Mean log-probability of each foundation's option over the orders `[V, K]`, and the options' mass `[V]`."""
    model, count = subject.language_model, len(NAMES)
    letters = torch.tensor(letter_ids(model, LETTERS))
    found_VK = torch.zeros(len(subject.vignettes), count, dtype=torch.float64)
    mass_V = torch.zeros(len(subject.vignettes), dtype=torch.float64)
    for order in range(ORDERS):
        shift = order * count // ORDERS
        names = [NAMES[(place + shift) % count] for place in range(count)]
        prompts = [model.chat.ids(subject.system, text(v.text, names), PREFILL) for v in subject.vignettes]
        with subject.in_force():
            logp_VK = torch.log_softmax(next_token_logits(model, prompts), -1)[:, letters].double()
        mass_V += logp_VK.exp().sum(-1) / ORDERS
        found_VK[:, [NAMES.index(name) for name in names]] += logp_VK / ORDERS
    return found_VK, mass_V


def text(vignette: str, names: Sequence[str]) -> str:
    """The options, which all scenes share, and the scene."""
    options = [f"({letter}) {FOUNDATIONS[name]}" for letter, name in zip(LETTERS, names, strict=True)]
    return "\n".join(["Which of these describes the scene best?", *options, "", f"Scene: {vignette}"])


def informedness(chosen: Sequence[str], labels: Sequence[str]) -> tuple[float, ...]:
    """One number an item whose mean is the macro average over the classes of (TPR - FPR).

    Args:
        chosen: class chosen for each item.
        labels: its true class; classes without an item are left out of the average.
    """
    total, of = len(labels), Counter(labels)
    values = []
    for choice, label in zip(chosen, labels, strict=True):
        hit = 1 / of[label] if choice == label else 0.0
        false_alarm = 1 / (total - of[choice]) if choice != label and choice in of else 0.0
        values.append(total / len(of) * (hit - false_alarm))
    return tuple(values)
