"""The two arms of a healing step: heal's own, and trl's SFTTrainer on the same rows.

Liger's kernels are put into the trainer where they are installed and there is a GPU for them.
"""

import copy
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from datasets import Dataset
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils import is_liger_kernel_available
from trl import SFTTrainer

from heal.accumulator import Accumulator
from heal.config import HealConfig
from heal.generation.collect import Completion
from heal.healing.heal import heal, left_as_it_was, training_arguments
from heal.healing.log import StepLog
from heal.healing.rows import StepOrder, steps_of, training_rows
from heal.models.language_model import LanguageModel
from heal.studies.bench.setting import Setting


def training(setting: Setting) -> HealConfig:
    """The recipe's training, reduced to what is part of every step."""
    return replace(setting.recipe.heal, validation=0.0, gradient_norms_every=0, epochs=2)


@contextmanager
def unpatched(model: nn.Module) -> Iterator[None]:
    """Undoes what is put into the module that a model's class is from, which every model of that class shares."""
    source = sys.modules[type(model).__module__]
    before = dict(vars(source))
    try:
        yield
    finally:
        for name in vars(source).keys() - before.keys():
            delattr(source, name)
        vars(source).update(before)


class Trained:
    """Healing as in a round; the time of a step excludes what precedes the first one."""

    def __init__(self, model: LanguageModel, accumulator: Accumulator, config: HealConfig):
        self._model, self._accumulator, self._config = model, accumulator, config

    def step_seconds(self, rows: list[Completion]) -> list[float]:
        ended = self.train(rows, self._config.epochs)
        return [after - before for before, after in pairwise(ended)]

    def train(self, rows: list[Completion], epochs: int) -> list[float]:
        """Trains on `rows`; the times at which the steps ended."""
        ended: list[float] = []

        def on_log(log: StepLog) -> None:
            if log.step:
                ended.append(time.perf_counter())

        with tempfile.TemporaryDirectory() as folder:
            config = replace(self._config, epochs=epochs)
            heal(
                self._model,
                self._accumulator,
                rows,
                config,
                round_index=0,
                seed=0,
                reference_bytes=2**30,
                scratch=Path(folder),
                on_log=on_log,
            )
        return ended


class PlainSFT(Trained):
    """trl's SFTTrainer on the same rows in the same steps, with the same LoRA, its own collator and loss.

    Its model is its own: Liger's kernels stay in it.
    """

    @property
    def kernels(self) -> bool:
        """Whether it computes with Liger's kernels, which run on a GPU alone."""
        return self._model.device.type == "cuda" and is_liger_kernel_available()

    def train(self, rows: list[Completion], epochs: int) -> list[float]:
        size = self._config.batch_size * self._config.accumulation
        made = training_rows(self._model, rows)
        order = [index for step in steps_of(made, range(len(made)), size, 0, 0, "steps") for index in step]
        labelled = [
            {"input_ids": row.input_ids, "labels": [-100] * row.start + row.completion}
            for row in (made[index] for index in order)
        ]
        ended: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *args, **kwargs) -> None:
                ended.append(time.perf_counter())

        class SameSteps(SFTTrainer):
            def _get_train_sampler(self, *args, **kwargs) -> StepOrder:
                return StepOrder(len(labelled), size, 0, 0, "epoch")

        steps = -(-len(rows) // size) * epochs
        arguments = replace(self._config, epochs=epochs)
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(left_as_it_was(self._accumulator.peft_model))
            stack.enter_context(unpatched(self._model.model))
            settings = training_arguments(arguments, steps, 0, folder, False, self._model.device)
            settings.use_liger_kernel = self.kernels
            trainer = SameSteps(
                model=self._accumulator.peft_model,
                args=settings,
                train_dataset=Dataset.from_list(labelled),
                processing_class=copy.copy(self._model.chat.tokenizer),
                callbacks=[Clock()],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return ended
