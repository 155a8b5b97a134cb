"""The loss of one pass through the model, a part of its optimiser step's (docs/method.md, Healing).

Shape suffixes: N completion positions of the pass, C completions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from heal.accumulator import CURRENT, Accumulator
from heal.healing.barrier import Barrier, aggregate, position_losses
from heal.healing.references import References, batch_states
from heal.healing.rows import Batch
from heal.models.language_model import LanguageModel


@dataclass(frozen=True)
class Terms:
    """What a pass adds to the loss of its step, and of what.

    Attributes:
        loss: `ce + wall`, and the pass's part of the penalty.
        ce: of its completion tokens, the sum over those of the step.
        wall: the barrier of its completions, the sum over those of the step.
        nll_N: cross-entropy of each position, nats.
        d_C: divergence of each completion, nats.
        penalty: on the operator norm, of the whole step; None: there is none.
    """

    loss: Tensor
    ce: Tensor
    wall: Tensor
    nll_N: Tensor
    d_C: Tensor
    penalty: Tensor | None


@dataclass(frozen=True)
class PassLoss:
    """`CE + lambda * mean_i relu(D_i - tau)` of passes under a student, as parts of their steps.

    Attributes:
        language_model: the student.
        accumulator: whose `current` is trained.
        references: the reference's final hidden states; None without divergence.
        decoder: a compiled decoder; None: the model's own.
    """

    language_model: LanguageModel
    accumulator: Accumulator
    references: References | None
    decoder: Callable | None

    def __call__(
        self, batch: Batch, barrier: Barrier, tokens: int, completions: int, passes: float | None = None
    ) -> Terms:
        """The terms of a pass.

        Args:
            batch: on the model's device.
            barrier: as it stands.
            tokens, completions: of the step, which the terms are means over.
            passes: of the step, which share the penalty; None: nothing is penalised.
        """
        h_ND = batch_states(self.language_model, batch, self.decoder)
        line_N, key_C = batch["line"], batch["key"]
        reference_ND = None if self.references is None else self.references.get(key_C, line_N)
        nll_N, kl_N = position_losses(self.language_model, h_ND, batch["labels"], reference_ND, barrier.divergence)
        d_C = aggregate(kl_N, line_N, len(key_C), barrier.aggregate)
        ce = nll_N.sum() / tokens
        wall = barrier.strength * torch.relu(d_C - barrier.tau).sum() / completions
        loss, penalty = ce + wall, None
        if passes is not None and barrier.operator_norm:
            penalty = barrier.operator_norm * squared_operator_norm(self.accumulator)
            loss = loss + penalty / passes
        return Terms(loss, ce, wall, nll_N, d_C, penalty)


def squared_operator_norm(accumulator: Accumulator) -> Tensor:
    """Mean over layers of the squared largest singular value of this round's update `scale * B A`.

    The singular vectors are found without gradient; with them fixed, `u^T (scale B A) v` has the
    singular value's own gradient.
    """
    squares = []
    for layer in accumulator.current_layers():
        a_RI, b_OR = layer.lora_A[CURRENT].weight, layer.lora_B[CURRENT].weight
        scale = layer.scaling[CURRENT]
        with torch.no_grad():
            q_b, r_b = torch.linalg.qr(b_OR.float())
            q_a, r_a = torch.linalg.qr(a_RI.float().T)
            u, _, vh = torch.linalg.svd(r_b @ r_a.T)
            u_O, v_I = q_b @ u[:, 0], q_a @ vh[0]
        squares.append((scale * (u_O @ b_OR.float()) @ (a_RI.float() @ v_I)).square())
    return torch.stack(squares).mean()
