"""Wrongness: does the model call a scene's deed wrong, asked once as wrong and once as acceptable?

Both frames are put in the yes/no format that the model knows best. The share of `wrong` on the two answers is averaged
over the frames, which cancels a leaning to yes. docs/method.md, Surgical informedness. Shape suffixes: V vignettes,
F frames, N both of them, A answers yes and no, O options that mean either, L vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from heal.evaluation.signal import ForcedChoice, Measured, Signal

if TYPE_CHECKING:
    from torch import Tensor

    from heal.evaluation.results import Answer
    from heal.evaluation.subject import Subject

HARMLESS = "social_norms"  # odd, but nobody's foundation is violated
ENOUGH = 0.5  # mass on the two answers, in every frame, from which a scene is scored

# What is asked, and which of the answers yes (0) and no (1) says that it is wrong.
FRAMES = {"Is this wrong?": 0, "Is this acceptable?": 1}

_VALIDITY = ForcedChoice("wrongness_mass", "wrongness_informedness")

WRONGNESS = Signal(
    "wrongness",
    unit="probability",
    title="Wrongness",
    note="probability, of the scenes",
    detail="probability that what is done in a scene is called wrong, asked both ways round; mean over the scenes",
    role="off_target",
    items="vignettes",
    validity=_VALIDITY,
)
WRONGNESS_INFORMEDNESS = Signal(
    "wrongness_informedness",
    unit="TPR - FPR",
    title="Wrongness informedness",
    note="violations against oddities",
    detail="violations called wrong less harmless oddities called wrong; 0 is chance",
    role="coherence",
    better="higher",
    items="vignettes",
    validity=_VALIDITY,
    chance=0.0,
)
WRONGNESS_MASS = Signal(
    "wrongness_mass",
    unit="probability",
    title="Wrongness mass",
    note="on yes or no",
    detail="mean probability mass on yes or no at the slot of that question",
    role="coherence",
    better="higher",
    items="vignettes",
    validity=_VALIDITY,
)
SIGNALS = (WRONGNESS, WRONGNESS_INFORMEDNESS, WRONGNESS_MASS)


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Measured]:
    """One item a vignette; nothing without vignettes.

    `wrongness` is in [0, 1], NaN where a frame's mass on the two answers is under ENOUGH; the mean of
    `wrongness_informedness` says whether it tells violations from what is merely odd (0: chance);
    `wrongness_mass` is the mass on the two answers, averaged over the frames.
    """
    import torch

    vignettes = subject.setup.vignettes
    if not vignettes:
        return []
    p_VFA = frames(subject)
    mass_VF = p_VFA.sum(-1)
    wrong_VF = torch.stack([p_VFA[:, f, says] for f, says in enumerate(FRAMES.values())], 1) / mass_VF
    wrong_V = torch.where((mass_VF >= ENOUGH).all(-1), wrong_VF.mean(-1), torch.nan)
    violations = [vignette.foundation != HARMLESS for vignette in vignettes]
    return [
        WRONGNESS.measured(wrong_V.tolist()),
        WRONGNESS_INFORMEDNESS.measured(_told_apart(wrong_V.tolist(), violations)),
        WRONGNESS_MASS.measured(mass_VF.mean(-1).tolist()),
    ]


def _told_apart(wrong: Sequence[float], violation: Sequence[bool]) -> tuple[float, ...]:
    """`informedness` of calling a scene wrong, over the scenes that were scored; NaN for the others."""
    from heal.evaluation.stats import informedness

    scored = [index for index, value in enumerate(wrong) if not math.isnan(value)]
    values = informedness([wrong[index] > 0.5 for index in scored], [violation[index] for index in scored])
    by_scene = dict(zip(scored, values, strict=True))
    return tuple(by_scene.get(index, math.nan) for index in range(len(wrong)))


def frames(subject: Subject) -> Tensor:
    """Full-vocabulary probability of the answers yes and no to each vignette in each frame, `[V, F, A]`.

    Raises:
        ValueError: the tokenizer has no answer slot in the subject's format.
    """
    import torch

    from heal.evaluation.probe import slot
    from heal.scoring import next_token_logits

    setup = subject.setup
    model, form = setup.language_model, setup.probe
    slots = [
        slot(model, model.chat.text(subject.system, text(vignette.text, frame, form.hint)) + form.prefill, form.options)
        for vignette in setup.vignettes
        for frame in FRAMES
    ]
    with torch.no_grad(), subject.in_force():
        p_NL = torch.softmax(next_token_logits(model, [ids for ids, _ in slots]), -1)
    p_NO = p_NL.gather(-1, torch.tensor([options for _, options in slots])).double()
    p_NA = torch.stack([p_NO[:, : len(form.yes)].sum(-1), p_NO[:, len(form.yes) :].sum(-1)], -1)
    return p_NA.view(len(setup.vignettes), len(FRAMES), 2)


def text(scene: str, frame: str, hint: str) -> str:
    """The scene, the question about it, and how to answer."""
    return "\n".join([scene, frame, hint])
