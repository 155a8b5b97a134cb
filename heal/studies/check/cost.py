"""What a round of a recipe will cost here: time measured on small pieces and scaled to its sizes, and memory."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from heal.accumulator import Accumulator
from heal.config import Recipe
from heal.decoding import decode
from heal.evaluation.results import Answer
from heal.generation.collect import Completion
from heal.models.language_model import LanguageModel
from heal.run.memory_plan import MemoryPlan, planned
from heal.run.student import build_accumulator
from heal.studies.bench.training import Trained
from heal.trait import Trait

FEW, MANY = 4, 16  # tokens: two decodings whose difference is the time of a step without reading the prompts
PASSES = 2  # of a calibration: the first round takes more, the later ones fewer
FORWARD = 1 / 3  # of the time of a healing step: what a pass without gradients takes
BASELINE = 4  # stages: base, base under either persona, and as much again for choosing the ways of asking


@dataclass(frozen=True)
class Pieces:
    """What was timed, in seconds.

    Attributes:
        prompt: extraction, for a prompt read up to the last block of the recipe's band.
        path_step: calibration, for a token of each of `path_rows` paths, scored with the vector on and off.
        path_rows: that many paths side by side.
        narrow_step: decoding a token of as many rows.
        stage: measuring one stage as the recipe asks.
        read, step: decoding side by side as many completions as a round does: reading the prompts, and a token of each.
        rows: that many completions.
        score: the filter's readings, for a completion.
        heal: an optimiser step with the barrier; NaN where no answer had a token to train on.
    """

    prompt: float
    path_step: float
    path_rows: int
    narrow_step: float
    stage: float
    read: float
    step: float
    rows: int
    score: float
    heal: float

    @property
    def tokens_per_second(self) -> float:
        """Of decoding."""
        return self.rows / self.step

    def paths(self, rows: int) -> float:
        """Seconds of a token of so many paths of a calibration: they grow with the rows as decoding does.

        On a CPU twice the rows take nearly twice as long, on a GPU hardly any longer.
        """
        each = max(self.step - self.narrow_step, 0.0) / max(self.rows - self.path_rows, 1)
        grown = (self.narrow_step + each * (rows - self.path_rows)) / self.narrow_step
        return self.path_step * max(grown, min(1.0, rows / self.path_rows))


@dataclass(frozen=True)
class Cost:
    """The estimate for a run.

    Attributes:
        pieces: that it rests on.
        seconds: of each step of a round.
        baseline: seconds before the first round.
        rounds: of the recipe.
        memory: what it needs of the device's.
    """

    pieces: Pieces
    seconds: dict[str, float]
    baseline: float
    rounds: int
    memory: MemoryPlan

    @property
    def round(self) -> float:
        """Seconds of a round."""
        return sum(self.seconds.values())

    @property
    def run(self) -> float:
        """Seconds of the run, without its report and export."""
        return self.baseline + self.rounds * self.round


def timed(work: Callable[[], object]) -> float:
    """Wall seconds of `work()`."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def scaled(recipe: Recipe, pieces: Pieces, memory: MemoryPlan) -> Cost:
    """The recipe's sizes times what the pieces took; every completion is taken to be kept."""
    calibration, generation, heal = recipe.calibration, recipe.generation, recipe.heal
    completions = max(generation.prompts * len(generation.alphas), generation.keep)
    path = PASSES * pieces.paths(calibration.candidates * calibration.prompts)
    if calibration.audit_prompts:
        path += pieces.paths(calibration.audit_prompts)
    decoding = math.ceil(completions / pieces.rows) * (pieces.read + generation.tokens * pieces.step)
    checked = generation.prompts / pieces.rows * generation.tokens / 2 * pieces.step  # base's own answers
    size = heal.batch_size * heal.accumulation
    held_out = round(heal.validation * completions)
    steps = math.ceil((completions - held_out) / size)
    passes = completions / size + heal.epochs * held_out / size  # the reference once, the validation every epoch
    seconds = {
        "extract": 2 * recipe.steer.pairs * pieces.prompt,
        "calibrate": calibration.tokens * path,
        "generate": decoding + (checked if recipe.filter.min_on_prompt else 0.0) + completions * pieces.score,
        "steered": pieces.stage if recipe.evaluation.steered else 0.0,
        "heal": (heal.epochs * steps + FORWARD * passes) * pieces.heal,
        "healed": pieces.stage,
    }
    baseline = (BASELINE + len(recipe.evaluation.doses)) * pieces.stage
    return Cost(pieces, seconds, baseline, recipe.run.rounds, memory)


def decoding_seconds(language_model: LanguageModel, recipe: Recipe, trait: Trait, rows: int) -> tuple[float, float]:
    """Seconds of reading the prompts of so many rows, and of decoding a token of each."""
    endless = replace(language_model, end_ids=frozenset())
    texts = trait.generation_prompts
    prompts = [language_model.chat.ids(recipe.model.system, texts[row % len(texts)]) for row in range(rows)]
    few, many = (timed(partial(decode, endless, prompts, tokens)) for tokens in (FEW, MANY))
    step = max(many - few, many / 4) / (MANY - FEW)  # on a busy machine the shorter one may have been the slower
    return max(many - MANY * step, 0.0), step


def healing_seconds(
    language_model: LanguageModel, accumulator: Accumulator, recipe: Recipe, answers: Sequence[Answer]
) -> float:
    """The median of two optimiser steps on answers; NaN where none has a token."""
    said = [answer for answer in answers if answer.ids]
    if not said:
        return math.nan
    size = recipe.heal.batch_size * recipe.heal.accumulation
    rows = [
        Completion(number, answer.prompt, 1.0, answer.prompt_ids, answer.ids, answer.text, answer.ended, 1.0, 0.0, ())
        for number, answer in enumerate(said[number % len(said)] for number in range(size))
    ]
    settings = replace(recipe.heal, validation=0.0, gradient_norms_every=0, epochs=3)
    return statistics.median(Trained(language_model, accumulator, settings).step_seconds(rows))


def measured(
    language_model: LanguageModel,
    recipe: Recipe,
    trait: Trait,
    answers: Sequence[Answer],
    *,
    prompt: float,
    path_step: float,
    path_rows: int,
    stage: float,
    score: float,
) -> Cost:
    """The cost of a run of the recipe; the model carries adapters afterwards.

    Args:
        language_model: the base, without adapters.
        recipe: whose sizes count.
        trait: its generation prompts.
        answers: to train on while a healing step is timed.
        prompt, path_step, path_rows, stage, score: see `Pieces`.
    """
    completions = max(recipe.generation.prompts * len(recipe.generation.alphas), recipe.generation.keep)
    rows = min(completions, language_model.batching.rows)
    read, step = decoding_seconds(language_model, recipe, trait, rows)
    _, narrow_step = decoding_seconds(language_model, recipe, trait, path_rows)
    accumulator = build_accumulator(language_model, recipe)
    accumulator.start_round(0)
    plan = planned(recipe, language_model, accumulator, trait).plan
    heal = healing_seconds(language_model, accumulator, recipe, answers)
    pieces = Pieces(prompt, path_step, path_rows, narrow_step, stage, read, step, rows, score, heal)
    return scaled(recipe, pieces, plan)
