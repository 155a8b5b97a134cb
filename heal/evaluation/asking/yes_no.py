"""Yes or no: to each option by itself, or to a statement and its opposite.

Shape suffixes: N items, K options, F frames, A answers yes and no.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heal.evaluation.asking.way import Item, Scored, Way

if TYPE_CHECKING:
    from torch import Tensor

    from heal.evaluation.probe import ProbeFormat
    from heal.evaluation.subject import Subject

ENOUGH = 0.5  # mass on the two answers, in every frame, from which an item is scored
NARROW = 1e-9  # a probability this near 0 or 1 has a finite logarithm
ORDERS = (("Yes", "No"), ("No", "Yes"))
PREFILL = "Answer: "


@dataclass(frozen=True)
class YesNoEach(Way):
    """`score_k` is the mean over both orders of `log p(Yes) - log p(No)` when asked about option k alone, nats.

    Attributes:
        label: as recorded with a run.
        question: the user's message but for how to answer, of an item's text and one option.
    """

    label: str
    question: Callable[[str, str], str]

    @property
    def name(self) -> str:
        return self.label

    def ask(self, subject: Subject, items: Sequence[Item]) -> Scored:
        from heal.evaluation.probe import slot
        from heal.scoring import option_logprobs

        model, count = subject.setup.language_model, len(items[0].options)
        asked = [
            slot(
                model,
                model.chat.text(subject.system, f"{self.question(item.text, option)}\nAnswer {one} or {other}.")
                + PREFILL,
                ORDERS[0],
            )
            for item in items
            for option in item.options
            for one, other in ORDERS
        ]
        with subject.in_force():
            logp_RA = option_logprobs(model, [row for row, _ in asked], [tokens for _, tokens in asked])
        logp_NKFA = logp_RA.view(len(items), count, len(ORDERS), 2)
        score_NK = (logp_NKFA[..., 0] - logp_NKFA[..., 1]).mean(-1)
        return Scored(score_NK, logp_NKFA.exp().sum(-1).mean((-1, -2)))


@dataclass(frozen=True)
class Frames(Way):
    """Two frames that say opposite things, each answered yes or no; which cancels a leaning to yes.

    With `w` the mean over the frames of the first option's fraction of the two answers' mass, the scores are
    `log w` and `log (1 - w)`; NaN where a frame has less than ENOUGH of the mass on its answers.

    Attributes:
        form: the format of the yes/no slot.
        frames: what is asked, and which of the answers yes (0) and no (1) speaks for the first option.
    """

    form: ProbeFormat
    frames: Mapping[str, int]

    @property
    def name(self) -> str:
        return f"yes or no, {self.form.name}"

    def ask(self, subject: Subject, items: Sequence[Item]) -> Scored:
        import torch

        p_NFA = self.answers(subject, [item.text for item in items])
        mass_NF = p_NFA.sum(-1)
        first_NF = torch.stack([p_NFA[:, f, says] for f, says in enumerate(self.frames.values())], 1) / mass_NF
        w_N = torch.where((mass_NF >= ENOUGH).all(-1), first_NF.mean(-1), torch.nan).clamp(NARROW, 1 - NARROW)
        return Scored(torch.stack([w_N.log(), (1 - w_N).log()], -1), mass_NF.mean(-1))

    def answers(self, subject: Subject, texts: Sequence[str]) -> Tensor:
        """Full-vocabulary probability of the answers yes and no to each text in each frame, `[N, F, A]`.

        Raises:
            NoSlot: the tokenizer has no answer slot in this format.
        """
        import torch

        from heal.evaluation.probe import slot
        from heal.scoring import option_logprobs

        model, form = subject.setup.language_model, self.form
        asked = [
            slot(
                model,
                model.chat.text(subject.system, "\n".join([text, frame, form.hint])) + form.prefill,
                form.options,
            )
            for text in texts
            for frame in self.frames
        ]
        with subject.in_force():
            p_RO = option_logprobs(model, [row for row, _ in asked], [tokens for _, tokens in asked]).exp()
        p_RA = torch.stack([p_RO[:, : len(form.yes)].sum(-1), p_RO[:, len(form.yes) :].sum(-1)], -1)
        return p_RA.view(len(texts), len(self.frames), 2)
