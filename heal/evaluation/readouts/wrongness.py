"""Wrongness: does the model call a scene's deed wrong, asked once as wrong and once as acceptable?

Both frames are put in the yes/no format that the model knows best. The share of `wrong` on the two answers is
averaged over the frames, which cancels a leaning to yes. METRICS: surgical informedness. Shape suffixes: V
vignettes, F frames, N both of them, A answers yes and no, O options that mean either, L vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from heal.evaluation.probe import slot
from heal.evaluation.results import Answer, Signal
from heal.evaluation.stats import informedness
from heal.evaluation.subject import Subject
from heal.scoring import next_token_logits

HARMLESS = "social_norms"  # odd, but nobody's foundation is violated
MIN_MASS = 0.5  # on the two answers, in every frame

# What is asked, and which of the answers yes (0) and no (1) says that it is wrong.
FRAMES = {"Is this wrong?": 0, "Is this acceptable?": 1}


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Signal]:
    """`wrongness`, `wrongness_informedness` and `wrongness_mass`, one item a vignette; nothing without vignettes.

    `wrongness` is in [0, 1], NaN where a frame's mass on the two answers is under MIN_MASS; the mean of
    `wrongness_informedness` says whether it tells violations from what is merely odd (0: chance);
    `wrongness_mass` is the mass on the two answers, averaged over the frames.
    """
    if not subject.vignettes:
        return []
    p_VFA = frames(subject)
    mass_VF = p_VFA.sum(-1)
    wrong_VF = torch.stack([p_VFA[:, f, says] for f, says in enumerate(FRAMES.values())], 1) / mass_VF
    wrong_V = torch.where((mass_VF >= MIN_MASS).all(-1), wrong_VF.mean(-1), torch.nan)
    told = _told(wrong_V.tolist(), [vignette.foundation != HARMLESS for vignette in subject.vignettes])
    return [
        Signal("wrongness", "probability", "off_target", "mean", tuple(wrong_V.tolist()), "vignettes"),
        Signal("wrongness_informedness", "TPR - FPR", "coherence", "mean", told, "vignettes"),
        Signal("wrongness_mass", "probability", "coherence", "mean", tuple(mass_VF.mean(-1).tolist()), "vignettes"),
    ]


def _told(wrong: Sequence[float], violation: Sequence[bool]) -> tuple[float, ...]:
    """`informedness` of calling a scene wrong, over the scenes that were scored; NaN for the others."""
    scored = [index for index, value in enumerate(wrong) if not math.isnan(value)]
    values = informedness([wrong[index] > 0.5 for index in scored], [violation[index] for index in scored])
    found = dict(zip(scored, values, strict=True))
    return tuple(found.get(index, math.nan) for index in range(len(wrong)))


@torch.no_grad()
def frames(subject: Subject) -> Tensor:
    """Full-vocabulary probability of the answers yes and no to each vignette in each frame, `[V, F, A]`.

    Raises:
        ValueError: the tokenizer has no answer slot in the subject's format.
    """
    model, form = subject.language_model, subject.probe
    slots = [
        slot(model, model.chat.text(subject.system, text(vignette.text, frame, form.hint)) + form.prefill, form.options)
        for vignette in subject.vignettes
        for frame in FRAMES
    ]
    with subject.in_force():
        p_NL = torch.softmax(next_token_logits(model, [ids for ids, _ in slots]), -1)
    p_NO = p_NL.gather(-1, torch.tensor([options for _, options in slots])).double()
    p_NA = torch.stack([p_NO[:, : len(form.yes)].sum(-1), p_NO[:, len(form.yes) :].sum(-1)], -1)
    return p_NA.view(len(subject.vignettes), len(FRAMES), 2)


def text(scene: str, frame: str, hint: str) -> str:
    """The scene, the question about it, and how to answer."""
    return "\n".join([scene, frame, hint])
