"""Whether the model could still answer if it were interrupted: a yes/no slot spliced into its own answers.

At forks along an answer the probe's text is spliced in, and the mass on the two answers is read at its slot.
An answer is alive while that mass is at least ALIVE; the first time below it is dead, and stays dead. The probe's
own text, forced on the model after its answer, is the scaffold whose nats per token are reported. SPEC section 4.
"""

import math
from collections.abc import Sequence

import torch

from heal.evaluation.probe import interruption
from heal.evaluation.results import Answer, Signal
from heal.evaluation.subject import Subject
from heal.evaluation.verdict import ALIVE
from heal.scoring import final_states, token_logprobs

FORKS = (0.5, 1.0)  # shares of an answer after which it is interrupted


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Signal]:
    """`alive_share`, `probe_mass`, `scaffold_nats` after the last fork, one item an answer; NaN where it is empty."""
    model = subject.language_model
    splice, options = interruption(model, subject.probe)
    said = [tuple(token for token in answer.ids if token not in model.end_ids) for answer in answers]
    forks = [(row, max(1, round(share * len(ids)))) for row, ids in enumerate(said) if ids for share in FORKS]
    prompts = [model.chat.ids(subject.system, answer.prompt) for answer in answers]
    befores = [[*prompts[row], *said[row][:count]] for row, count in forks]
    with subject.in_force():
        states = final_states(model, [[*row, *splice] for row in befores], [len(row) - 1 for row in befores])
        logprobs = token_logprobs(model, [h_ND[:-1] for h_ND in states], [splice] * len(forks))
        masses = [float(_mass(subject, h_ND[-1:], options)) for h_ND in states]
    found: dict[int, tuple[float, float, float]] = {}
    for (row, _), mass, logprob_N in zip(forks, masses, logprobs, strict=True):
        alive = mass >= ALIVE and found.get(row, (1.0,))[0] == 1.0
        found[row] = (float(alive), mass, -float(logprob_N.double().mean()))
    columns = zip(*(found.get(row, (math.nan,) * 3) for row in range(len(answers))), strict=True)
    alive_N, mass_N, nats_N = (tuple(column) for column in columns)
    return [
        Signal("alive_share", "share", "coherence", "mean", alive_N),
        Signal("probe_mass", "probability", "coherence", "mean", mass_N),
        Signal("scaffold_nats", "nats/token", "coherence", "mean", nats_N),
    ]


@torch.no_grad()
def _mass(subject: Subject, h_1D: torch.Tensor, options: Sequence[int]) -> torch.Tensor:
    return torch.softmax(subject.language_model.logits(h_1D), -1)[0, list(options)].sum()
