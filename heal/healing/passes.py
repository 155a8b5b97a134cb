"""How many completions go through the model in one pass of training: on a GPU, as many as pay and fit.

An optimiser step is the recipe's, whatever passes it is cut into: their gradients add up to the same.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from heal.accumulator import Accumulator
from heal.config import HealConfig
from heal.errors import UserError
from heal.healing.barrier import Barrier
from heal.healing.heal import left_as_it_was, less_to_train, training_decoder
from heal.healing.loss import PassLoss
from heal.healing.references import References, compute
from heal.healing.rows import Collator, TrainingRow, on
from heal.memory import LESS
from heal.models.batch_sizes import quickest
from heal.models.batching import fastest, release
from heal.models.language_model import LanguageModel


@dataclass(frozen=True)
class Trial:
    """A pass as it was tried.

    Attributes:
        completions: in it.
        tokens_per_second: completion tokens trained on, the reference's states being there.
        held: the most bytes beside the model and its gradients.
    """

    completions: int
    tokens_per_second: float
    held: int


@dataclass(frozen=True)
class Passes:
    """What a step of training is cut into.

    Attributes:
        completions: of a pass.
        step: of an optimiser step, in this process.
        most: of the largest pass that memory was estimated to take.
        trials: all that fitted, in the order in which they were made.
    """

    completions: int
    step: int
    most: int
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        tried = ", ".join(
            f"{trial.completions}: {trial.tokens_per_second:,.0f} tokens/s, {trial.held / 2**30:.2g} GiB"
            for trial in self.trials
        )
        return (
            f"{self.completions} of a step's {self.step} completions in a pass of training (tried {tried}; memory is "
            f"taken to be there for {self.most})"
        )

    def event(self) -> dict[str, Any]:
        """What is recorded of it."""
        return asdict(self)


def fitted(
    language_model: LanguageModel,
    accumulator: Accumulator,
    settings: HealConfig,
    rows: Sequence[TrainingRow],
    start: int,
    most: int,
) -> Passes:
    """The passes that the training of a round is worth cutting into, by forward and backward passes of a student.

    They begin at `start` completions, or at 1 where those do not fit, and grow as long as a doubling trains at least a
    tenth more tokens per second and fits. The student, its gradients and random numbers are as they were afterwards.

    Args:
        language_model: the student.
        accumulator: whose `current` is trained.
        settings: the recipe's heal section.
        rows: an optimiser step of this process, or as many as there are; passes are taken from its beginning.
        start: the first size tried.
        most: the largest.

    Raises:
        UserError: not even one completion fits; no such divergence or aggregate.
    """
    barrier, collator = Barrier.of_round(settings.barrier, 0), Collator(language_model)
    device, model, batching = language_model.device, language_model.model, language_model.batching
    head_bytes = batching.head_bytes
    width = model.config.get_text_config().hidden_size
    lengths = {row.key: len(row.completion) for row in rows}
    total, trials = sum(lengths.values()), list[Trial]()
    references = None
    if barrier.divergence.needs_reference:
        references = References(lengths, width, model.dtype, total * width * model.dtype.itemsize, Path())
    with left_as_it_was(accumulator.peft_model), torch.random.fork_rng([device]):
        loss = PassLoss(language_model, accumulator, references, training_decoder(language_model, settings))

        for weight in accumulator.trainable().values():
            weight.grad = torch.zeros_like(weight)

        def tried(completions: int) -> float:
            part = rows[:completions]
            tokens = sum(lengths[row.key] for row in part)
            if references is not None:
                compute(references, language_model, accumulator.base, [collator(part)])

            def step() -> None:
                loss(on(device, collator(part)), barrier, tokens, completions, 1.0).loss.backward()

            batching.head_bytes = head_bytes  # which shrink beside a pass that is too large
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            seconds = quickest(step, device)
            held = torch.cuda.max_memory_allocated(device) - before
            trials.append(Trial(completions, tokens / seconds, held))
            return trials[-1].tokens_per_second

        chosen = fastest(tried, start, most)
        if chosen < start:
            release()
            chosen = fastest(tried, 1, min(start - 1, most)) if start > 1 else 0
    batching.head_bytes = head_bytes
    release()
    if not chosen:
        raise UserError(
            f"model.name={language_model.name}: training does not fit the memory of {device}, not even on a single "
            f"completion; {less_to_train(language_model)}, or {LESS}"
        )
    return Passes(chosen, len(rows), most, tuple(trials))
