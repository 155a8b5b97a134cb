"""One round of healing: kept completions in, a trained `current` adapter out, the model left clean."""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from datasets.utils.logging import disable_progress_bar
from peft import PeftModel
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from trl import SFTConfig

from heal import parallel
from heal.accumulator import Accumulator
from heal.config import HealConfig
from heal.generation.collect import Completion
from heal.healing.barrier import Barrier
from heal.healing.log import StepLog
from heal.healing.loss import PassLoss
from heal.healing.references import References, batch_states, compute
from heal.healing.rows import (
    Batch,
    Collator,
    StepCollator,
    StepOrder,
    TrainingRow,
    cut,
    dataset,
    split,
    steps_of,
    training_rows,
)
from heal.healing.trainer import HealTrainer, OnLog
from heal.memory import memory_told
from heal.models.architectures import blocks_of
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.randomness import derive_seed
from heal.scoring import token_divergences

SEEDS = 2**32  # as many as numpy takes


def heal(
    language_model: LanguageModel,
    accumulator: Accumulator,
    completions: Sequence[Completion],
    settings: HealConfig,
    *,
    round_index: int,
    seed: int,
    reference_bytes: int,
    scratch: Path,
    on_log: OnLog,
    start: float | None = None,
    progress: Progress = silent,
) -> None:
    """Trains `current` on the kept completions.

    Args:
        language_model: the student.
        accumulator: with a fresh `current`.
        completions: the kept ones.
        settings: the recipe's heal section.
        round_index: r, from 0.
        seed: of the run; this step's randomness derives from (seed, round, "heal").
        reference_bytes: of the reference's hidden states that may lie in memory.
        scratch: where a temporary folder may be made for what does not fit.
        on_log: gets every step's log; the first, of step 0, is the floor of the divergence.
        start: where the barrier's strength follows D, what it came to in the round before; None: there was none.
        progress: told (steps done, steps).

    Raises:
        RoundError: the loss or what was trained is not finite, or memory ran out.
        UserError: no such divergence or aggregate.
    """
    barrier = Barrier.of_round(settings.barrier, round_index, start)
    rows = training_rows(language_model, completions)
    parts = split(len(rows), settings.validation, seed, round_index, "validation")
    size = settings.batch_size * settings.accumulation
    train, validation = (
        [rows[index] for step in steps_of(rows, part, size, seed, round_index, "steps") for index in step]
        for part in (parts.train, parts.validation)
    )
    steps = math.ceil(len(train) / size) * settings.epochs

    def log(step_log: StepLog) -> None:
        on_log(step_log)
        progress(step_log.step, steps)

    disable_progress_bar()
    with (
        tempfile.TemporaryDirectory(prefix=".heal-", suffix=".tmp", dir=scratch) as folder,
        left_as_it_was(accumulator.peft_model),
        less_memory(settings, language_model),
    ):
        collator = StepCollator(language_model.batching, settings.batch_size, parallel.rank(), parallel.size())
        references = None
        if barrier.divergence.needs_reference:
            batches = [
                rows for part in (train, validation) for step in cut(part, size) for rows in collator.passes(step)
            ]
            context = accumulator.base if settings.barrier.reference == "base" else accumulator.previous
            references = _references(language_model, batches, reference_bytes, Path(folder))
            floors = parallel.together(partial(_fill, references, language_model, context, batches))
            log(StepLog(0, 0.0, "train", {"kl_floor": max(floors)}))
        trainer = HealTrainer(
            loss=PassLoss(language_model, accumulator, references, training_decoder(language_model, settings)),
            barrier=barrier,
            order=StepOrder(len(train), size, seed, round_index, "epoch"),
            batch_size=settings.batch_size,
            gradient_norms_every=settings.gradient_norms_every,
            on_log=log,
            args=training_arguments(
                by_steps(settings),
                steps,
                derive_seed(seed, round_index, "heal") % SEEDS,
                folder,
                bool(validation),
                language_model.device,
            ),
            data_collator=collator,
            train_dataset=dataset(train),
            eval_dataset=dataset(validation) if validation else None,
            processing_class=copy.copy(language_model.chat.tokenizer),
        )
        progress(0, steps)
        trainer.train()
        trainer.accelerator.free_memory()


def _references(
    language_model: LanguageModel, batches: Sequence[Sequence[TrainingRow]], budget: int, folder: Path
) -> References:
    """Room for the reference's final hidden states of this process's passes."""
    lengths = {row.key: len(row.completion) for batch in batches for row in batch}
    model = language_model.model
    return References(lengths, model.config.get_text_config().hidden_size, model.dtype, budget, folder)


def _fill(
    references: References,
    language_model: LanguageModel,
    context: Callable[[], AbstractContextManager[None]],
    batches: Sequence[Sequence[TrainingRow]],
) -> float:
    """Computes the reference's states, once a round, and the floor of the divergence; 0 where there is no pass.

    `context` is that of the reference's gates.
    """
    collator = Collator(language_model)
    compute(references, language_model, context, map(collator, batches))
    return _floor(language_model, context, references, collator(batches[0])) if batches else 0.0


def _floor(
    language_model: LanguageModel,
    context: Callable[[], AbstractContextManager[None]],
    references: References,
    batch: Batch,
) -> float:
    """The floor of the divergence: the largest KL of the reference, computed again, from what was kept.

    It is exactly 0 where the same pass gives the same bits, as on a CPU.
    """
    with context(), torch.no_grad():
        again = [batch_states(language_model, batch)]
    kept = [references.get(batch["key"], batch["line"])]
    return float(torch.cat(token_divergences(language_model, again, kept)).max())


def training_decoder(language_model: LanguageModel, settings: HealConfig) -> Callable | None:
    """Makes the model's blocks ready to be trained as asked; the compiled decoder, None where none is asked for."""
    if settings.gradient_checkpointing:
        checkpoint_blocks(language_model)
    return torch.compile(language_model.decoder, dynamic=True) if settings.compile else None


def checkpoint_blocks(language_model: LanguageModel) -> None:
    """Lets every block forget what it computed and compute it again going backward, until its forward is put back."""
    for block in language_model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def by_steps(config: HealConfig) -> HealConfig:
    """The same with whole optimiser steps as batches, which a StepTrainer cuts into passes."""
    return replace(config, batch_size=config.batch_size * config.accumulation, accumulation=1)


def less_memory(config: HealConfig, language_model: LanguageModel) -> AbstractContextManager[None]:
    """Turns running out of memory into a RoundError that says which keys to change."""
    batches = "" if language_model.fits_passes else f" with batches of {config.batch_size}"
    return memory_told(
        f"while healing{batches}", f"{less_to_train(language_model)}, in a run of its own (run.name=...)"
    )


def less_to_train(language_model: LanguageModel) -> str:
    """The keys to change where training does not fit."""
    if language_model.fits_passes:
        return "set heal.gradient_checkpointing=true, or lower generation.tokens"
    return "lower heal.batch_size and raise heal.accumulation by as much, or set heal.gradient_checkpointing=true"


def training_arguments(
    config: HealConfig, steps: int, seed: int, folder: str, validate: bool, device: torch.device
) -> SFTConfig:
    """The heal section as trl's trainer takes it, for a model on `device` and no other."""
    arguments = SFTConfig(
        output_dir=folder,
        seed=seed,
        data_seed=seed,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        weight_decay=config.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(config.warmup * steps),
        max_grad_norm=config.clip,
        max_length=None,  # rows are checked against the context; nothing is cut
        packing=False,
        gradient_checkpointing=False,  # blocks are wrapped one by one: Trainer's needs the model in train mode
        bf16=False,  # no autocast: the base has its dtype, LoRA is float32
        eval_strategy="epoch" if validate else "no",
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        # Only where Trainer would take the GPU: with use_cpu a process that torchrun started counts as distributed.
        use_cpu=device.type == "cpu" and torch.accelerator.is_available(),
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # all that are visible count, and trl refuses more than one
    return arguments


@contextmanager
def left_as_it_was(peft_model: PeftModel) -> Iterator[None]:
    """Undoes what a trainer leaves behind: patched forwards, accelerate's marks, changed configs, train mode."""
    model: PreTrainedModel = peft_model.get_base_model()
    modules = [peft_model, peft_model.base_model, model, *blocks_of(model)]
    marks = [set(vars(module)) for module in modules]
    forwards = [vars(module).get("forward") for module in modules]
    configs = {id(c): c for c in (model.config, model.config.get_text_config())}.values()
    saved = [(config, dict(vars(config))) for config in configs]
    generation = copy.deepcopy(model.generation_config)
    try:
        yield
    finally:
        for module, before, forward in zip(modules, marks, forwards, strict=True):
            for name in set(vars(module)) - before:
                delattr(module, name)
            if forward is not None:
                module.forward = forward
        for config, values in saved:
            vars(config).clear()
            vars(config).update(values)
        model.generation_config = generation
        peft_model.eval()
        peft_model.zero_grad(set_to_none=True)
