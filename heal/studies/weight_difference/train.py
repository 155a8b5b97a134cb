"""Contrastive weight steering (arXiv 2511.05408): train towards a persona and towards its opposite, and subtract."""

import copy
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets.utils.logging import disable_progress_bar
from peft import PeftModel

from heal import parallel
from heal.config import HealConfig, Recipe
from heal.errors import RoundError
from heal.generation.collect import Completion
from heal.healing.barrier import position_losses
from heal.healing.divergences import divergence_named
from heal.healing.heal import SEEDS, by_steps, checkpoint_blocks, left_as_it_was, less_memory, training_arguments
from heal.healing.references import batch_states
from heal.healing.rows import StepCollator, StepOrder, dataset, steps_of, training_rows
from heal.healing.steps import StepTrainer
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.randomness import derive_seed
from heal.steering.weights import WeightDifference
from heal.studies.weight_difference.adapters import Layers, adapted, difference
from heal.studies.weight_difference.answers import STAGE, Contrast
from heal.studies.weight_difference.kinds import AdapterKind, adapter_config
from heal.trait import Trait


@dataclass(frozen=True)
class Trained:
    """A difference of weights, and how the two trainings ended.

    Attributes:
        difference: positive minus negative.
        contrast: what was trained on.
        loss_positive, loss_negative: mean cross-entropy of the completion tokens over the last epoch, nats.
    """

    difference: WeightDifference
    contrast: Contrast
    loss_positive: float
    loss_negative: float


def train_contrast(
    language_model: LanguageModel,
    trait: Trait,
    recipe: Recipe,
    contrast: Contrast,
    kind: AdapterKind = "lora",
    progress: Progress = silent,
) -> Trained:
    """One adapter trained on each side of a contrast, from the same initialisation, and `theta_+ - theta_-`.

    The keys of the recipe's `heal` section apply: rank, alpha and init of the adapters, band, epochs, learning rate and
    the rest of AdamW, batches. There is no barrier and nothing is held out.

    Args:
        language_model: the base, without adapters; it is restored bit for bit.
        trait: its personas are contrasted.
        recipe: its run.seed and heal section are used.
        contrast: what `contrasting_answers` kept.
        kind: of the adapters.
        progress: told (steps done, steps).

    Raises:
        RoundError: the loss is not finite, or memory ran out.
        UserError: quantised weights, or an architecture without Linears for this kind.
    """
    config, seed = recipe.heal, recipe.run.seed
    peft_config = adapter_config(language_model, kind, config, language_model.band(config.band))
    trained: list[tuple[Layers, float]] = []
    for part, rows in enumerate((contrast.positive, contrast.negative)):

        def told(done: int, total: int, part: int = part) -> None:
            progress(part * total + done, 2 * total)

        with adapted(language_model, copy.deepcopy(peft_config), derive_seed(seed, STAGE, "adapter")) as carrier:
            loss = _fit(language_model, carrier.peft_model, rows, config, seed, told)
        trained.append((carrier.layers, loss))
    (positive, loss_positive), (negative, loss_negative) = trained
    updates = difference(positive, negative)
    if not all(factor.isfinite().all() for update in updates.values() for factor in update.factors):
        raise RoundError("the difference of the trained weights is not finite. Lower heal.learning_rate.")
    settings = {
        "adapter": kind,
        "completions": len(contrast.positive),
        "seed": seed,
        "band": list(config.band),
        "epochs": config.epochs,
        "learning_rate": config.learning_rate,
    }
    made = WeightDifference(updates, "weight_difference", language_model.name, trait.name, settings=settings)
    return Trained(made, contrast, loss_positive, loss_negative)


class _Trainer(StepTrainer):
    """Cross-entropy of the completion tokens, a mean over those of an optimiser step."""

    def __init__(self, *args, progress: Progress, **kwargs):
        super().__init__(*args, **kwargs)
        self._progress = progress
        self._made: list[tuple[float, int]] = []
        # Of each step's passes, the sum over their completion tokens, and their number.
        self.losses: list[list[tuple[float, int]]] = []

    def take_tally(self) -> list[tuple[float, int]]:
        made, self._made = self._made, []
        return made

    def keep_tallies(self, tallies: Sequence[list[tuple[float, int]]]) -> None:
        self.losses.append([loss for tally in tallies for loss in tally])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._language_model.model.eval()  # no dropout of the base's own
        h_ND = batch_states(self._language_model, inputs)
        nll_N, _ = position_losses(self._language_model, h_ND, inputs["labels"], None, divergence_named("none"))
        loss = nll_N.sum() / (len(nll_N) if num_items_in_batch is None else num_items_in_batch)
        if not torch.isfinite(loss):
            raise RoundError(f"the loss is not finite at step {self.state.global_step + 1}. Lower heal.learning_rate.")
        self._made.append((float(nll_N.detach().double().sum()), len(nll_N)))
        return (loss, None) if return_outputs else loss

    def log(self, logs, *args, **kwargs) -> None:
        self._progress(self.state.global_step, self.state.max_steps)


def _fit(
    language_model: LanguageModel,
    peft_model: PeftModel,
    rows: Sequence[Completion],
    config: HealConfig,
    seed: int,
    progress: Progress,
) -> float:
    """Trains the adapter inside `peft_model`; the mean loss of the last epoch, nats per completion token."""
    made = training_rows(language_model, rows)
    size = config.batch_size * config.accumulation
    train = [made[row] for step in steps_of(made, range(len(made)), size, seed, STAGE, "steps") for row in step]
    steps = math.ceil(len(train) / size) * config.epochs
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch, left_as_it_was(peft_model), less_memory(config, language_model):
        if config.gradient_checkpointing:
            checkpoint_blocks(language_model)
        trainer = _Trainer(
            model=peft_model,
            language_model=language_model,
            order=StepOrder(len(train), size, seed, STAGE, "epoch"),
            progress=progress,
            args=training_arguments(
                by_steps(config),
                steps,
                derive_seed(seed, STAGE, "train") % SEEDS,
                scratch,
                False,
                language_model.device,
            ),
            data_collator=StepCollator(language_model.batching, config.batch_size, parallel.rank(), parallel.size()),
            train_dataset=dataset(train),
            processing_class=copy.copy(language_model.chat.tokenizer),
        )
        progress(0, steps)
        trainer.train()
        trainer.accelerator.free_memory()
    last = [loss for step in trainer.losses[-(steps // config.epochs) :] for loss in step]
    return sum(total for total, _ in last) / sum(count for _, count in last)
