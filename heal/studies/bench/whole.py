"""A whole round, piece by piece, against the plain serial way to do the same work (heal/studies/bench/serial.py)."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from heal.config import HealConfig
from heal.decoding import Decoded, Sampling, decode
from heal.dose.calibrate import Calibration, Goal, calibrate, path_divergences
from heal.evaluation.asking.letters import PREFILL, lettered
from heal.evaluation.readouts import free_answers, likelihood, persona
from heal.evaluation.readouts import questions as questions_readout
from heal.evaluation.readouts.questions import QUESTIONS, items_of, text
from heal.evaluation.subject import Setup, Subject
from heal.generation.relevance import tail_perplexities
from heal.healing.heal import heal
from heal.steering.extract import contexts, extract
from heal.steering.settings import settled
from heal.steering.vector import SteeringVector
from heal.studies.bench import serial
from heal.studies.bench.limits import Limits
from heal.studies.bench.setting import Setting
from heal.studies.bench.table import Row

PAIRS = 64
CALIBRATED, CALIBRATION_TOKENS, EVALUATIONS = 4, 20, 16
COMPLETIONS, TOKENS, SAMPLING = 24, 48, Sampling(1.0, 0.95, 64)
HEALED, EPOCHS, STRENGTH = 16, 2, 0.3
ANSWERED, ANSWER_TOKENS, ASKED = 8, 32, 16


def round_piece(setting: Setting, limits: Limits) -> Iterator[Row]:
    """Each piece of a round both ways, once, in turn; the row `round` is their sum.

    Both ways continue from the same vector, dose and completions, so each piece does the same work.
    """
    both = Both(setting)
    totals = [0.0, 0.0]
    for name, piece in both.pieces.items():
        ours, plainly, note = piece()
        begin = time.perf_counter()
        ours()
        middle = time.perf_counter()
        plainly()
        seconds, baseline = middle - begin, time.perf_counter() - middle
        totals = [totals[0] + seconds, totals[1] + baseline]
        yield Row(f"round_{name}", seconds, baseline, seconds / baseline, note=note)
    seconds, baseline = totals
    note = "all of them; baseline: one prompt, one completion, one dose at a time"
    yield Row("round", seconds, baseline, seconds / baseline, note=note)


class Both:
    """The pieces of one round, each as (heal's way, the plain way, what is done)."""

    def __init__(self, setting: Setting, plain: bool = True):
        """With a model of its own for the plain way, unless nobody takes that."""
        self.setting = setting
        self.recipe, self.trait = setting.recipe, setting.trait
        self.model, self.accumulator = setting.student(0)
        self.plain_model, self.plain = setting.student(0) if plain else (self.model, self.accumulator)
        self.band = self.model.band(settled(self.recipe.steer)[1])
        self.prompts = setting.prompts(COMPLETIONS)
        self.vector: SteeringVector = setting.vector
        self.dose: Calibration | None = None
        self.said: list[Decoded] = []

    @property
    def pieces(self) -> dict[str, Callable[[], tuple[Callable, Callable, str]]]:
        """By name, in the order of a round; each is asked for once the one before has been done."""
        steps = (self.extract, self.calibrate, self.generate, self.filter, self.heal, self.evaluate)
        return {step.__name__: step for step in steps}

    def extract(self) -> tuple[Callable, Callable, str]:
        texts = contexts(PAIRS)

        def ours() -> None:
            with self.accumulator.student():
                self.vector = extract(self.model, self.trait, texts, "mean_diff", self.band)

        return ours, lambda: serial.extract(self.plain_model, self.trait, texts, self.band), f"{PAIRS} pairs"

    def calibrate(self) -> tuple[Callable, Callable, str]:
        settings, prompts = self.recipe.calibration, self.prompts[:CALIBRATED]
        target, tolerance = settings.target, settings.tolerance

        def ours() -> None:
            with self.accumulator.student():
                self.dose = calibrate(
                    lambda cs: path_divergences(self.model, self.vector, cs, prompts, CALIBRATION_TOKENS),
                    None,
                    replace(Goal.of(settings), reference="student"),
                )

        def plainly() -> None:
            serial.calibrate(
                self.plain_model,
                self.vector,
                prompts,
                CALIBRATION_TOKENS,
                target=target,
                tolerance=tolerance,
                start=1.0,
                max_evaluations=EVALUATIONS,
            )

        return ours, plainly, f"{CALIBRATED} prompts of {CALIBRATION_TOKENS} tokens"

    def generate(self) -> tuple[Callable, Callable, str]:
        assert self.dose is not None
        alphas = self.recipe.generation.alphas
        doses = [self.dose.c_star * alphas[index % len(alphas)] for index in range(COMPLETIONS)]
        seeds = [("bench", index) for index in range(COMPLETIONS)]

        def ours() -> None:
            with self.accumulator.student():
                self.said = decode(self.model, self.prompts, TOKENS, self.vector, doses, sampling=SAMPLING, seeds=seeds)

        def plainly() -> None:
            sampling = asdict(SAMPLING)
            serial.generate(self.plain_model, self.vector, self.prompts, doses, TOKENS, seed=0, **sampling)

        return ours, plainly, f"{COMPLETIONS} steered completions of {TOKENS} tokens"

    def filter(self) -> tuple[Callable, Callable, str]:
        said = [completion.ids for completion in self.said]

        def ours() -> None:
            with self.accumulator.base():
                tail_perplexities(self.model, self.prompts, said)

        def plainly() -> None:
            with self.plain.base():
                serial.tail_perplexities(self.plain_model, self.prompts, said)

        return ours, plainly, "perplexity of each completion under base"

    def heal(self) -> tuple[Callable, Callable, str]:
        pairs = [(prompt, completion.ids) for prompt, completion in zip(self.prompts, self.said, strict=True)][:HEALED]
        kept = [
            replace(self.setting.rows[index], prompt_ids=tuple(prompt), ids=ids, ended=False)
            for index, (prompt, ids) in enumerate(pairs)
        ]
        barrier = replace(self.recipe.heal.barrier, strength=STRENGTH)  # a step costs the same with any
        config: HealConfig = replace(self.recipe.heal, validation=0.0, epochs=EPOCHS, barrier=barrier)

        def ours() -> None:
            with tempfile.TemporaryDirectory() as folder:
                heal(
                    self.model,
                    self.accumulator,
                    kept,
                    config,
                    round_index=0,
                    seed=0,
                    reference_bytes=2**30,
                    scratch=Path(folder),
                    on_log=lambda log: None,
                )

        def plainly() -> None:
            rate, betas = config.learning_rate, config.betas
            serial.heal(
                self.plain_model,
                self.plain,
                pairs,
                epochs=EPOCHS,
                learning_rate=rate,
                betas=betas,
                accumulation=config.batch_size,
                strength=STRENGTH,
                tau=barrier.tau,
            )

        return ours, plainly, f"{HEALED} completions, {EPOCHS} epochs, reverse-KL rmse barrier"

    def evaluate(self) -> tuple[Callable, Callable, str]:
        texts, system = list(self.trait.heldout_prompts[:ANSWERED]), self.recipe.model.system
        answered = [self.model.chat.ids(system, asked) for asked in texts]
        questions = [
            self.model.chat.ids(system, text(item.text, lettered(item.options)), PREFILL)
            for item in items_of(QUESTIONS, by_id=True)[:ASKED]
        ]
        setup = Setup(
            language_model=self.model,
            trait=self.trait,
            base=self.accumulator.base,
            system=system,
            prompts=texts,
            tokens=ANSWER_TOKENS,
            max_repetition=self.recipe.filter.max_repetition,
            questions=ASKED,
        )
        subject = Subject(setup, "healed", self.accumulator.student)

        def plainly() -> None:
            said = serial.answer(self.plain_model, answered, ANSWER_TOKENS)
            serial.letter_masses(self.plain_model, questions)
            with self.plain.base():
                serial.tail_perplexities(self.plain_model, answered, said)
                serial.persona_log_ratios(self.plain_model, self.trait, texts, said)

        def ours() -> None:
            said = subject.answer()
            for readout in (questions_readout, free_answers, likelihood, persona):  # the plain way lacks relevance
                readout.measure(subject, said)

        return ours, plainly, f"{ANSWERED} answers of {ANSWER_TOKENS} tokens, {ASKED} questions"
