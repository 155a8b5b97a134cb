"""Whether the model could still answer if it were interrupted: a yes/no slot spliced into its own answers.

At forks along an answer the probe's text is spliced in, and the mass on the two answers is read at its slot. An answer
is alive while that mass is at least ALIVE; the first time below it is dead, and stays dead. The probe's own text,
forced on the model after its answer, is the scaffold whose nats per token are reported. docs/method.md,
Coherence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from heal.evaluation.signal import ForcedChoiceRule, Limit, Measured, Signal

if TYPE_CHECKING:
    from torch import Tensor

    from heal.evaluation.results import Answer
    from heal.evaluation.subject import Subject

ALIVE = 0.75  # mass on the probe's answers from which a model that is interrupted counts as alive
FORKS = (0.5, 1.0)  # fractions of an answer after which it is interrupted

ALIVE_SHARE = Signal(
    "alive_share",
    unit="share",
    title="Alive",
    note="fraction of answers",
    detail="fraction of answers after half and all of which the model, asked a yes/no question, still puts "
    f"{ALIVE:g} or more on yes or no",
    role="coherence",
    better="higher",
    digits=2,
    limit=Limit(
        "min_alive_share",
        0.75,
        "coherence floor: fraction of answers after which a probe is answered",
        kind="floor",
        words="alive answers {:.0%}",
        minimum=0,
        maximum=1,
    ),
    validity=ForcedChoiceRule("probe_mass"),
    order=3,
)
PROBE_MASS = Signal(
    "probe_mass",
    unit="probability",
    title="Probe mass",
    note="on its answers",
    detail="mean probability mass on yes or no at the slot of that question, after the whole answer",
    role="coherence",
    better="higher",
    validity=ForcedChoiceRule("probe_mass"),
    order=3,
)
SCAFFOLD = Signal(
    "scaffold_nats",
    unit="nats/token",
    title="Scaffold",
    note="nats/token",
    detail="nats per token of that question, forced on the model after its answer",
    role="coherence",
    better="lower",
    digits=2,
    limit=Limit(
        "max_scaffold_rise",
        1.0,
        "coherence ceiling: nats per token of the forced probe text over base",
        kind="ceiling",
        words="scaffold {:.2f} nats/token",
        over_base=True,
        minimum=0,
    ),
    validity=ForcedChoiceRule("probe_mass"),
    order=3,
)
SIGNALS = (ALIVE_SHARE, PROBE_MASS, SCAFFOLD)


def measure(subject: Subject, answers: Sequence[Answer]) -> list[Measured]:
    """One item an answer, probe mass and scaffold after the last fork; NaN where an answer is empty."""
    from heal.evaluation.probe import interruption
    from heal.parallel import over_rows
    from heal.scoring import final_states, token_logprobs

    model = subject.setup.language_model
    splice, options = interruption(model, subject.setup.probe)
    said = [tuple(token for token in answer.ids if token not in model.end_ids) for answer in answers]
    forks = [(row, max(1, round(share * len(ids)))) for row, ids in enumerate(said) if ids for share in FORKS]
    prompts = [model.chat.ids(subject.system, answer.prompt, thought=answer.thought) for answer in answers]
    befores = [[*prompts[row], *said[row][:count]] for row, count in forks]

    def interrupted(share: range) -> list[tuple[float, float]]:
        """The mass on the answers, and the scaffold's mean log-probability, after some of the beginnings."""
        rows = [befores[fork] for fork in share]
        states = final_states(model, [[*row, *splice] for row in rows], [len(row) - 1 for row in rows])
        logprobs = token_logprobs(model, [h_ND[:-1] for h_ND in states], [splice] * len(rows))
        masses = [float(_mass(subject, h_ND[-1:], options)) for h_ND in states]
        return [(mass, float(logprob_N.double().mean())) for mass, logprob_N in zip(masses, logprobs, strict=True)]

    with subject.in_force():
        found = over_rows(len(forks), interrupted)
    by_answer: dict[int, tuple[float, float, float]] = {}
    for (row, _), (mass, mean) in zip(forks, found, strict=True):
        alive = mass >= ALIVE and by_answer.get(row, (1.0,))[0] == 1.0
        by_answer[row] = (float(alive), mass, -mean)
    unknown = (math.nan,) * 3
    alive_N, mass_N, nats_N = zip(*(by_answer.get(row, unknown) for row in range(len(answers))), strict=True)
    return [ALIVE_SHARE.measured(alive_N), PROBE_MASS.measured(mass_N), SCAFFOLD.measured(nats_N)]


def _mass(subject: Subject, h_1D: Tensor, options: Sequence[int]) -> Tensor:
    import torch

    with torch.no_grad():
        return torch.softmax(subject.setup.language_model.logits(h_1D), -1)[0, list(options)].sum()
