"""The trainer with the barrier in its loss."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.trainer_utils import TrainOutput

from heal.accumulator import CURRENT, Accumulator
from heal.errors import RoundError
from heal.healing.barrier import Barrier, aggregate, position_losses
from heal.healing.log import Phase, StepLog
from heal.healing.references import References, batch_states
from heal.healing.steps import StepTrainer
from heal.models.language_model import LanguageModel
from heal.parallel import together

OnLog = Callable[[StepLog], None]


@dataclass
class _Tally:
    """What the batches since the last log came to."""

    nll_sum: float = 0.0
    positions: int = 0
    divergences: list[float] = field(default_factory=list)
    tokens: int = 0
    extra: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)

    @staticmethod
    def of_all(parts: "Sequence[_Tally]") -> "_Tally":
        """Those of several processes as one; the first knows best what it adds, and since when."""
        extra: dict[str, float] = {}
        for part in reversed(parts):
            extra |= part.extra
        return _Tally(
            sum(part.nll_sum for part in parts),
            sum(part.positions for part in parts),
            [value for part in parts for value in part.divergences],
            sum(part.tokens for part in parts),
            extra,
            parts[0].since,
        )

    def summary(self, barrier: Barrier) -> dict[str, float]:
        """The log of these batches, every mean over completions or positions, not over batches."""
        d = self.divergences
        excess = sum(max(0.0, value - barrier.tau) for value in d) / len(d)
        ce = self.nll_sum / self.positions
        of_barrier = {
            "D_mean": sum(d) / len(d),
            "D_max": max(d),
            "barrier_on": sum(value > barrier.tau for value in d) / len(d),
        }
        return {
            "loss": ce + barrier.strength * excess + self.extra.get("operator_norm_penalty", 0.0),
            "ce": ce,
            **(of_barrier if barrier.divergence.needs_reference else {}),
            "tokens_per_second": self.tokens / max(time.perf_counter() - self.since, 1e-9),
            **self.extra,
        }


class HealTrainer(StepTrainer):
    """`loss = CE(completion tokens) + lambda * mean_i relu(D_i - tau)`.

    CE is a mean over the optimiser step's completion tokens and the barrier a mean over its
    completions, so 1 x 8, 8 x 1, any padding and any number of processes give the same gradients.
    """

    def __init__(
        self,
        *args,
        language_model: LanguageModel,
        accumulator: Accumulator,
        references: References | None,
        barrier: Barrier,
        decoder: Callable | None,
        batch_size: int,
        gradient_norms_every: int,
        on_log: OnLog,
        **kwargs,
    ):
        """Takes StepTrainer's arguments and:

        Args:
            language_model: the student.
            accumulator: whose `current` is trained.
            references: the reference's final hidden states; None without divergence.
            barrier: the second term, as it stands at the first step.
            decoder: a compiled decoder; None: the model's own.
            batch_size: completions of a pass.
            gradient_norms_every: steps between gradient norms of both terms; 0: never.
            on_log: gets every log.
        """
        kept = {weight: weight.data for weight in accumulator.trainable().values()}
        super().__init__(*args, model=accumulator.peft_model, **kwargs)
        for weight, data in kept.items():
            if weight.dtype != data.dtype:  # trl rounds what is trained on a 4-bit base to bfloat16
                weight.data = data
        self._language_model = language_model
        self._accumulator = accumulator
        self._references = references
        self._barrier = barrier
        self._decoder = decoder
        self._batch_size = batch_size
        self._gradient_norms_every = gradient_norms_every
        self._on_log = on_log
        self._tally: dict[Phase, _Tally] = {"train": _Tally(), "eval": _Tally()}
        self._norms_taken_at = -1

    def train(self, *args, **kwargs) -> TrainOutput:
        """Trains, and refuses a last step that no loss was computed after."""
        output = super().train(*args, **kwargs)
        if not all(bool(weight.isfinite().all()) for weight in self._accumulator.trainable().values()):
            raise RoundError(
                f"the weights are not finite after the last step, {self.state.global_step}; the rounds before this "
                "one are kept. Lower heal.learning_rate, in a run of its own (run.name=...).",
                again=False,
            )
        return output

    def take_tally(self) -> _Tally:
        tally, self._tally["train"] = self._tally["train"], _Tally()
        return tally

    def keep_tallies(self, tallies: Sequence[_Tally]) -> None:
        self._tally["train"] = _Tally.of_all(tallies)

    @torch.no_grad()
    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """What the held-out completions come to, which is logged; the processes share them as they do a step."""
        self.model.eval()

        def passes() -> _Tally:
            for step in self.get_eval_dataloader():
                for batch in step.batches:
                    self.compute_loss(self.model, self._prepare_inputs(batch))
            return self._tally["eval"]

        self._tally["eval"] = _Tally.of_all(together(passes))
        self._log_phase("eval")
        return {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        training = self.model.training
        self._language_model.model.eval()  # no dropout of the base's own: the reference has none
        target_N, line_N, key_C = inputs["labels"], inputs["line"], inputs["key"]
        norms = training and self._norms_due()
        if self._language_model.spread is not None:
            self._language_model.spread.backwards = 3 if norms else 1
        h_ND = batch_states(self._language_model, inputs, self._decoder)
        reference_ND = None if self._references is None else self._references.get(key_C, line_N)
        nll_N, kl_N = position_losses(self._language_model, h_ND, target_N, reference_ND, self._barrier.divergence)
        d_C = aggregate(kl_N, line_N, len(key_C), self._barrier.aggregate)
        tokens = num_items_in_batch if training and num_items_in_batch is not None else len(target_N)
        completions = self.step.completions if training else len(key_C)
        ce = nll_N.sum() / tokens
        wall = self._barrier.strength * torch.relu(d_C - self._barrier.tau).sum() / completions
        loss = ce + wall
        tally = self._tally["train" if training else "eval"]
        if training and self._barrier.operator_norm:
            penalty = self._barrier.operator_norm * squared_operator_norm(self._accumulator)
            loss = loss + penalty / self.step.passes
            tally.extra["operator_norm_penalty"] = float(penalty.detach())
        # All that the log needs in one transfer: each would wait for the device.
        read = torch.cat([torch.stack([loss, ce, wall]).double(), nll_N.double().sum()[None], d_C.double()]).detach()
        loss_now, ce_now, wall_now, nll_sum, *divergences = read.tolist()
        if not math.isfinite(loss_now):
            raise RoundError(
                f"the loss is not finite at step {self.state.global_step + 1} (CE {ce_now:g}, "
                f"barrier {wall_now:g}); the rounds before this one are kept. Lower heal.learning_rate, in a run of "
                "its own (run.name=...).",
                again=False,
            )
        if norms:
            self._take_gradient_norms(ce, wall, tally)
        tally.nll_sum += nll_sum
        tally.positions += len(target_N)
        tally.divergences += divergences
        tally.tokens += inputs["input_ids"].numel()
        return (loss, None) if return_outputs else loss

    def _norms_due(self) -> bool:
        """Whether this pass is the one in some steps of which the norms are taken."""
        step, every = self.state.global_step, self._gradient_norms_every
        return bool(every) and step % every == 0 and step != self._norms_taken_at

    def _take_gradient_norms(self, ce: Tensor, wall: Tensor, tally: _Tally) -> None:
        """The gradient norm of each term alone (over the step's first batch)."""
        self._norms_taken_at = self.state.global_step
        parameters = list(self._accumulator.trainable().values())
        for name, term in (("gradient_norm_ce", ce), ("gradient_norm_barrier", wall)):
            gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            squares = [g.double().square().sum() for g in gradients if g is not None]
            tally.extra[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replaces trl's log: exact means of the step, and whatever Trainer adds (lr, gradient norm)."""
        if "loss" in logs:  # and not the summary at the end of training
            self._log_phase(
                "train", {name: float(logs[name]) for name in ("learning_rate", "grad_norm") if name in logs}
            )

    def _log_phase(self, phase: Phase, more: Mapping[str, float] | None = None) -> None:
        values = self._tally[phase].summary(self._barrier) | dict(more or {})
        if phase == "train" and self._barrier.follows:
            self._barrier = self._barrier.after(values["D_mean"], values["barrier_on"])
            values["strength"] = self._barrier.strength
        self._tally = {"train": _Tally(), "eval": _Tally()}
        steps = self.state.global_step
        self._on_log(StepLog(steps, self.order.epochs(steps, self._batch_size), phase, values))


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
