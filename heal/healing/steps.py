"""trl's SFTTrainer, one optimiser step at a time: its passes are shared by the processes, its gradients summed.

The loss of a pass is a part of the step's, a sum divided by the totals of the whole step, so that the gradients of all
passes, whoever made them, add up to those of the step.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from heal import parallel
from heal.healing.rows import Collator, SharedStep, StepOrder
from heal.memory import OutOfMemory, out_of_memory
from heal.models.batching import release
from heal.models.language_model import LanguageModel


class StepTrainer(SFTTrainer):
    """Trains on `SharedStep`s, in a given order; its arguments accumulate nothing.

    Attributes:
        order: of the training rows.
        collator: of a pass.
        step: the one that is being computed.
    """

    step: SharedStep

    def __init__(self, *args, language_model: LanguageModel, order: StepOrder, **kwargs):
        """Takes SFTTrainer's arguments, the model that is trained and the order of the training rows."""
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)
        self._language_model = language_model
        self.collator = Collator(language_model)
        self.order = order

    @abstractmethod
    def take_tally(self) -> Any:
        """What this process's passes came to since it was last asked; travels to the other processes."""

    @abstractmethod
    def keep_tallies(self, tallies: Sequence[Any]) -> None:
        """Keeps what the passes of all processes came to, in the order of their rows."""

    def _get_train_sampler(self, *args, **kwargs) -> StepOrder:
        return self.order

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """One step, whose totals it knows itself."""
        return [next(epoch_iterator)], None

    def floating_point_ops(self, inputs: SharedStep) -> int:
        """0: nobody asks."""
        return 0

    def training_step(self, model: nn.Module, inputs: SharedStep, num_items_in_batch=None) -> Tensor:
        """Adds up the gradients of a step; the loss of this process's passes."""
        losses = [torch.zeros((), device=self.args.device)]
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

        batching = self._language_model.batching

        def passes() -> tuple[Any, list[bool], int]:
            losses.extend(self._passes(model, inputs))
            return self.take_tally(), [parameter.grad is not None for parameter in parameters], batching.completions

        tallies, reached, completions = zip(*parallel.together(passes), strict=True)
        batching.completions = min(filter(None, completions), default=0)  # as few as memory takes anywhere
        if parallel.size() > 1:
            # What no process reached stays without a gradient, as with one process.
            trained = [p for p, *by_process in zip(parameters, *reached, strict=True) if any(by_process)]
            for parameter in trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            parallel.summed([parameter.grad for parameter in trained if parameter.grad is not None])
        self.keep_tallies(tallies)
        return torch.stack([loss.to(losses[0]) for loss in losses]).sum()

    def _passes(self, model: nn.Module, step: SharedStep) -> list[Tensor]:
        """The loss of each pass over this process's share, whose gradients are added up.

        Where a GPU runs out of memory, all passes of the step are made again with half as many completions, and so are
        those of later steps.
        """
        language_model = self._language_model
        planned, halvings = max(map(len, step.parts), default=0), 0
        head_bytes = language_model.batching.head_bytes  # which shrink beside a pass that is too large
        one = super().training_step
        while True:
            self.step = step
            try:
                return [one(model, self.collator(rows), step.tokens) for rows in step.parts]
            except (RuntimeError, OutOfMemory) as error:
                if not (language_model.fits_passes and out_of_memory(error) and planned >> halvings > 1):
                    raise
            model.zero_grad(set_to_none=True)
            self.take_tally()
            release()
            step, halvings = step.halved(), halvings + 1
            language_model.batching.head_bytes = head_bytes
            language_model.batching.shrink_completions(planned, halvings)
