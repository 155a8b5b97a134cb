"""One round of healing: kept completions in, a trained `current` adapter out, the model left clean."""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from torch import Tensor
from transformers import PreTrainedModel
from trl import SFTConfig

from heal.accumulator import Accumulator
from heal.config import HealConfig
from heal.generation.collect import Row
from heal.healing.barrier import lambda_for_round
from heal.healing.rows import Collator, split, training_rows
from heal.healing.trainer import Barrier, HealTrainer, Log
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.randomness import derive_seed
from heal.scoring import completion_states

_SEEDS = 2**32  # what numpy takes


def heal(
    language_model: LanguageModel,
    accumulator: Accumulator,
    rows: Sequence[Row],
    config: HealConfig,
    round_index: int,
    seed: int,
    batch_tokens: int,
    on_log: Log,
    progress: Progress = silent,
) -> None:
    """Trains `current` on the kept completions.

    Args:
        language_model: the student.
        accumulator: with a fresh `current`.
        rows: kept completions.
        config: the recipe's heal section.
        round_index: r, from 0.
        seed: of the run; this stage's randomness derives from (seed, round, "heal").
        batch_tokens: tokens of a pass that computes the reference.
        on_log: gets every step's log.
        progress: told (steps done, steps).

    Raises:
        RoundError: the loss is not finite.
    """
    made = training_rows(language_model, rows)
    parts = split(len(made), config.validation, seed, round_index, "validation")
    references = reference_states(language_model, accumulator, rows, config, batch_tokens)
    steps = math.ceil(math.ceil(len(parts.train) / config.batch_size) / config.accumulation) * config.epochs

    def log(entry: dict[str, float]) -> None:
        on_log(entry)
        progress(int(entry["step"]), steps)

    disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch, left_as_it_was(accumulator):
        trainer = HealTrainer(
            language_model=language_model,
            accumulator=accumulator,
            references=references,
            barrier=Barrier(
                config.barrier.divergence,
                config.barrier.aggregate,
                lambda_for_round(config.barrier.strength, config.barrier.power, round_index),
                config.barrier.tau,
                config.barrier.operator_norm,
            ),
            gradient_norms_every=config.gradient_norms_every,
            on_log=log,
            args=_arguments(
                config, steps, derive_seed(seed, round_index, "heal") % _SEEDS, scratch, bool(parts.validation)
            ),
            data_collator=Collator(language_model.pad_id),
            train_dataset=Dataset.from_list([made[index] for index in parts.train]),
            eval_dataset=Dataset.from_list([made[index] for index in parts.validation]) if parts.validation else None,
            processing_class=copy.copy(language_model.chat.tokenizer),
        )
        progress(0, steps)
        trainer.train()
        trainer.accelerator.free_memory()


def reference_states(
    language_model: LanguageModel,
    accumulator: Accumulator,
    rows: Sequence[Row],
    config: HealConfig,
    batch_tokens: int,
) -> list[Tensor] | None:
    """The reference's final hidden states of every completion, computed once a round; None without divergence."""
    if config.barrier.divergence == "none":
        return None
    context: Callable = accumulator.base if config.barrier.reference == "base" else accumulator.previous
    with context():
        return completion_states(
            language_model, [row.prompt_ids for row in rows], [row.ids for row in rows], batch_tokens
        )


def _arguments(config: HealConfig, steps: int, seed: int, folder: str, validate: bool) -> SFTConfig:
    return SFTConfig(
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
        gradient_checkpointing=False,
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
    )


@contextmanager
def left_as_it_was(accumulator: Accumulator) -> Iterator[None]:
    """Undoes what a trainer leaves behind: patched forwards, accelerate's marks, changed configs, train mode."""
    model: PreTrainedModel = accumulator.peft_model.get_base_model()
    modules = [accumulator.peft_model, accumulator.peft_model.base_model, model]
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
        accumulator.peft_model.eval()
        accumulator.peft_model.zero_grad(set_to_none=True)
