"""The trainer with the barrier in its loss."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers.trainer_utils import TrainOutput

from heal.errors import RoundError
from heal.healing.barrier import Barrier
from heal.healing.log import Phase, StepLog
from heal.healing.loss import PassLoss, Terms
from heal.healing.steps import StepTrainer
from heal.parallel import together

OnLog = Callable[[StepLog], None]

_NORM = "gradient_norm_ce"


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
        loss: PassLoss,
        barrier: Barrier,
        batch_size: int,
        gradient_norms_every: int,
        on_log: OnLog,
        **kwargs,
    ):
        """Takes StepTrainer's arguments and:

        Args:
            loss: of a pass, under the student.
            barrier: the second term, as it stands at the first step.
            batch_size: completions of a batch, in which epochs are counted.
            gradient_norms_every: steps between gradient norms of both terms; 0: never.
            on_log: gets every log.
        """
        accumulator = loss.accumulator
        kept = {weight: weight.data for weight in accumulator.trainable().values()}
        super().__init__(*args, model=accumulator.peft_model, language_model=loss.language_model, **kwargs)
        for weight, data in kept.items():
            if weight.dtype != data.dtype:  # trl rounds what is trained on a 4-bit base to bfloat16
                weight.data = data
        self._loss = loss
        self._accumulator = accumulator
        self._barrier = barrier
        self._batch_size = batch_size
        self._gradient_norms_every = gradient_norms_every
        self._on_log = on_log
        self._tally: dict[Phase, _Tally] = {"train": _Tally(), "eval": _Tally()}

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
                for rows in step.parts:
                    self.compute_loss(self.model, self._prepare_inputs(self.collator(rows)))
            return self._tally["eval"]

        self._tally["eval"] = _Tally.of_all(together(passes))
        self._log_phase("eval")
        return {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        training = self.model.training
        self._language_model.model.eval()  # no dropout of the base's own: the reference has none
        norms = training and self._norms_due()
        if self._language_model.spread is not None:
            self._language_model.spread.backwards = 3 if norms else 1
        positions = len(inputs["labels"])
        if training:
            terms = self._loss(inputs, self._barrier, self.step.tokens, self.step.completions, self.step.passes)
        else:
            terms = self._loss(inputs, self._barrier, positions, len(inputs["key"]))
        loss, ce, wall, nll_N, d_C = terms.loss, terms.ce, terms.wall, terms.nll_N, terms.d_C
        tally = self._tally["train" if training else "eval"]
        if terms.penalty is not None:
            tally.extra["operator_norm_penalty"] = float(terms.penalty.detach())
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
            self._take_gradient_norms(terms, tally)
        tally.nll_sum += nll_sum
        tally.positions += positions
        tally.divergences += divergences
        tally.tokens += inputs["input_ids"].numel()
        return (loss, None) if return_outputs else loss

    def _norms_due(self) -> bool:
        """Whether this pass is the one in some steps of which the norms are taken."""
        every = self._gradient_norms_every
        return bool(every) and self.state.global_step % every == 0 and _NORM not in self._tally["train"].extra

    def _take_gradient_norms(self, terms: Terms, tally: _Tally) -> None:
        """The gradient norm of each term alone (over the step's first pass)."""
        parameters = list(self._accumulator.trainable().values())
        for name, term in ((_NORM, terms.ce), ("gradient_norm_barrier", terms.wall)):
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
