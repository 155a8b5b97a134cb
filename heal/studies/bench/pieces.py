"""The benchmarks: each compares one piece of a round with its plain counterpart, in turn, in one process.

A piece is a function of a `Setting` and a matmul rate that gives rows; `ratio` is this over its baseline.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from heal.accumulator import Accumulator
from heal.config import HealConfig
from heal.decoding import decode
from heal.dose.calibrate import Goal, calibrate, path_divergences
from heal.generation.collect import Completion
from heal.healing.barrier import position_losses
from heal.healing.divergences import divergence_named
from heal.healing.heal import heal, left_as_it_was, training_arguments
from heal.healing.log import StepLog
from heal.healing.references import References, batch_states, compute
from heal.healing.rows import Batch, Collator, StepOrder, steps_of, training_rows
from heal.models.language_model import LanguageModel
from heal.steering.extract import contexts, pair_activations
from heal.steering.sites import Site
from heal.studies.bench.setting import Setting
from heal.studies.bench.timing import Row, count_flops, interleaved, limit_share, median_seconds, peak_bytes

Piece = Callable[[Setting, float], Iterator[Row]]

REPEATS = 3
_LENGTH = 16  # tokens decoded


def heal_piece(setting: Setting, rate: float) -> Iterator[Row]:
    """A healing step with the reverse-KL rmse barrier against trl's SFTTrainer doing plain SFT on the same rows."""
    config = training(setting)
    few = setting.rows[: config.batch_size]
    ours = Trained(setting.model, setting.accumulator, config)
    theirs = PlainSFT(*setting.student(0), config)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(2):
        seconds["ours"] += ours.step_seconds(setting.rows)
        seconds["theirs"] += theirs.step_seconds(setting.rows)
    step, plain = (statistics.median(steps) for steps in seconds.values())
    once, twice = (count_flops(partial(ours.train, few, n)) for n in (1, 2))
    tokens = sum(len(row.prompt_ids) + len(row.ids) for row in few)
    yield Row(
        "heal_step",
        step,
        plain,
        step / plain,
        limit_share(twice - once, step, rate),
        tokens / step,
        note=f"{config.batch_size} completions; baseline: trl plain SFT, same rows and LoRA",
    )
    device = setting.model.device
    memory, plain_memory = (peak_bytes(partial(arm.train, few, 1), device) for arm in (ours, theirs))
    yield Row(
        "heal_memory",
        step,
        plain,
        memory / plain_memory,
        peak_bytes=memory,
        note=f"ratio of peaks above the model; trl plain SFT {plain_memory / 2**20:,.0f} MiB",
    )


def barrier_piece(setting: Setting, rate: float) -> Iterator[Row]:
    """The chunked barrier against the dense loss: value and gradient in the hidden states of one batch."""
    model, accumulator = setting.model, setting.accumulator
    batch = one_batch(setting)
    target_N = batch["labels"].to(model.device)
    with torch.no_grad(), accumulator.base():
        reference_ND = batch_states(model, batch)
    h_ND = reference_ND + 0.05 * torch.randn_like(reference_ND)

    def chunked() -> None:
        x_ND = h_ND.clone().requires_grad_()
        nll_N, kl_N = position_losses(model, x_ND, target_N, reference_ND, divergence_named("kl_rev"))
        (nll_N.mean() + kl_N.mean()).backward()

    def dense() -> None:
        x_ND = h_ND.clone().requires_grad_()
        logits_NV = model.logits(x_ND)
        with torch.no_grad():
            reference_NV = model.logits(reference_ND)
        (cross_entropy(logits_NV, target_N) + dense_kl(logits_NV, reference_NV).mean()).backward()

    seconds = median_seconds({"chunked": chunked, "dense": dense}, 2 * REPEATS + 1, model.device)
    flops, note = count_flops(chunked), f"{len(target_N)} positions; baseline: the dense loss"
    ratio = seconds["chunked"] / seconds["dense"]
    share = limit_share(flops, seconds["chunked"], rate)
    yield Row(
        "barrier_time",
        seconds["chunked"],
        seconds["dense"],
        ratio,
        share,
        len(target_N) / seconds["chunked"],
        note=note,
    )
    memory, whole = (peak_bytes(work, model.device) for work in (chunked, dense))
    yield Row(
        "barrier_memory",
        seconds["chunked"],
        seconds["dense"],
        memory / whole,
        peak_bytes=memory,
        note=f"ratio of peaks; dense {whole / 2**20:,.0f} MiB",
    )


def reference_piece(setting: Setting, rate: float) -> Iterator[Row]:
    """A batch's reference states read from the cache against computing them again."""
    model, accumulator = setting.model, setting.accumulator
    batch = one_batch(setting)
    counts = torch.bincount(batch["line"]).tolist()
    with tempfile.TemporaryDirectory() as folder:
        width = model.model.config.get_text_config().hidden_size
        lengths = dict(zip(batch["key"].tolist(), counts, strict=True))
        references = References(lengths, width, model.model.dtype, 2**30, Path(folder))
        compute(references, model, accumulator.base, [batch])

        def again() -> None:
            with torch.no_grad(), accumulator.base():
                batch_states(model, batch)

        arms = {"cached": lambda: references.get(batch["key"], batch["line"]), "again": again}
        seconds = median_seconds(arms, REPEATS, model.device)
    yield Row("reference_cached", seconds["cached"], seconds["again"], seconds["cached"] / seconds["again"])


def generate_piece(setting: Setting, rate: float) -> Iterator[Row]:
    """Steered against unsteered decoding, and many rows side by side against one by one."""
    vector, rows = setting.vector, 24
    model = replace(setting.model, end_ids=frozenset())  # every row has equally many tokens in either arm
    prompts = setting.prompts(rows)
    with setting.accumulator.student():
        arms = {
            "steered": lambda: decode(model, prompts, _LENGTH, vector, [0.5] * rows),
            "plain": lambda: decode(model, prompts, _LENGTH),
        }
        seconds = median_seconds(arms, 2 * REPEATS + 1, model.device)
        share = limit_share(count_flops(arms["steered"]), seconds["steered"], rate)
        ratio, speed = seconds["steered"] / seconds["plain"], rows * _LENGTH / seconds["steered"]
        note = f"{rows} rows of {_LENGTH} tokens; baseline: unsteered"
        yield Row("steered_generate", seconds["steered"], seconds["plain"], ratio, share, speed, note=note)
        single = replace(model, batching=replace(model.batching, rows=1))
        seconds = median_seconds(
            {"all": arms["plain"], "one": lambda: decode(single, prompts, _LENGTH)}, 1, model.device
        )
        ratio, speed = seconds["all"] / seconds["one"], rows * _LENGTH / seconds["all"]
        yield Row("batched_generate", seconds["all"], seconds["one"], ratio, None, speed, note="baseline: row by row")


def extract_piece(setting: Setting, rate: float) -> Iterator[Row]:
    """Extraction that stops after the last block it reads against one that continues to the last block."""
    model, texts, band = setting.model, contexts(16), setting.model.band(setting.recipe.steer.band)
    with setting.accumulator.student():
        sites = [Site(layer) for layer in band]
        arms = {
            "stops": lambda: pair_activations(model, setting.trait, texts, sites),
            "goes on": lambda: pair_activations(model, setting.trait, texts, [*sites, Site(len(model.blocks) - 1)]),
        }
        seconds = median_seconds(arms, REPEATS, model.device)
        share = limit_share(count_flops(arms["stops"]), seconds["stops"], rate)
    note = f"{len(texts)} pairs; baseline: no early stop"
    yield Row(
        "extract_stop", seconds["stops"], seconds["goes on"], seconds["stops"] / seconds["goes on"], share, note=note
    )


def calibrate_piece(setting: Setting, rate: float) -> Iterator[Row]:
    """Decoding passes of a calibration, cold and from starts as far off as rounds drift; `ratio` counts them."""
    settings, model = setting.recipe.calibration, setting.model
    prompts = setting.prompts(max(8, settings.prompts))

    def run(start: float | None):
        begin = time.perf_counter()
        with setting.accumulator.student():
            calibration = calibrate(
                lambda cs: path_divergences(model, setting.vector, cs, prompts, settings.tokens),
                None,
                replace(Goal.of(settings), reference="student"),
                start=start,
            )
        return calibration, time.perf_counter() - begin

    cold, seconds = run(None)
    note = f"{len(prompts)} prompts, {settings.candidates} candidates a pass, ended on {cold.outcome}; ratio: passes"
    yield Row("calibration_cold", seconds, ratio=cold.passes, note=note)
    warm = [run(cold.c_star * drift) for drift in (0.85, 1.2)]
    worst, seconds = max(warm, key=lambda pair: pair[0].passes)
    outcomes = " and ".join(calibration.outcome for calibration, _ in warm)
    note = f"from 0.85 and 1.2 times c_star, the slower one; ended on {outcomes}; ratio: passes"
    yield Row("calibration_warm", seconds, ratio=worst.passes, note=note)


def history_piece(setting: Setting, rate: float) -> Iterator[Row]:
    """A healing step and a decode with 8 and 16 folded rounds against none."""
    config = training(setting)
    rows, prompts = setting.rows[: 2 * config.batch_size], setting.prompts(8)
    students = {rounds: setting.student(rounds) for rounds in (0, 8, 16)}
    steps: dict[int, list[float]] = {rounds: [] for rounds in students}
    for _ in range(REPEATS):
        for rounds, (model, accumulator) in students.items():
            steps[rounds] += Trained(model, accumulator, config).step_seconds(rows)
    arms = {str(rounds): decoding(*student, prompts) for rounds, student in students.items()}
    decodes = interleaved(arms, 2 * REPEATS + 1, setting.model.device)
    for rounds in (8, 16):
        step, none = statistics.median(steps[rounds]), statistics.median(steps[0])
        note = f"{rounds} folded rounds; baseline: none"
        yield Row(f"history_step_{rounds}", step, none, step / none, note=note)
        said, none = statistics.median(decodes[str(rounds)]), statistics.median(decodes["0"])
        speed = len(prompts) * _LENGTH / said
        yield Row(f"history_decode_{rounds}", said, none, said / none, None, speed, note=note)


def training(setting: Setting) -> HealConfig:
    """The recipe's training, reduced to what is part of every step."""
    return replace(setting.recipe.heal, validation=0.0, gradient_norms_every=0, epochs=2)


def one_batch(setting: Setting) -> Batch:
    """A collated batch of the recipe's size."""
    rows = training_rows(setting.model, setting.rows[: setting.recipe.heal.batch_size])
    return Collator(setting.model)(rows)


def dense_kl(logits_NV: Tensor, reference_NV: Tensor) -> Tensor:
    """`KL(student || reference)` over the whole batch at once, the straightforward way."""
    logp_NV = torch.log_softmax(logits_NV, -1)
    return (logp_NV.exp() * (logp_NV - torch.log_softmax(reference_NV, -1))).sum(-1)


def decoding(model: LanguageModel, accumulator: Accumulator, prompts: list[list[int]]) -> Callable[[], None]:
    """Greedy decoding of the student, as generation and evaluation do it."""

    def work() -> None:
        with accumulator.student():
            decode(model, prompts, _LENGTH)

    return work


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
    """trl's SFTTrainer on the same rows in the same steps, with the same LoRA, its own collator and loss."""

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
        with tempfile.TemporaryDirectory() as folder, left_as_it_was(self._accumulator.peft_model):
            trainer = SameSteps(
                model=self._accumulator.peft_model,
                args=training_arguments(
                    replace(self._config, epochs=epochs), steps, 0, folder, False, self._model.device
                ),
                train_dataset=Dataset.from_list(labelled),
                processing_class=copy.copy(self._model.chat.tokenizer),
                callbacks=[Clock()],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return ended
