"""How much of the trait there is, and what it cost."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heal.accumulator import Accumulator
from heal.api.keywords import Keywords
from heal.api.model import coefficient
from heal.api.steering import prompts_that_fit
from heal.evaluation.metrics import Coherence, SignalFigures, Summary, Verdict
from heal.evaluation.results import StageResult
from heal.evaluation.signal import TRAIT, limits_of
from heal.evaluation.vignettes import read_vignettes
from heal.progress import Progress, silent
from heal.run.step import A, Step
from heal.steering.intervention import Intervention
from heal.steps.baseline import Baseline, examination_of, of_base, refuse_incoherent
from heal.trait import Trait

_EVALUATION = Keywords("evaluation", "filter.max_repetition", without=("steered", "doses", "url", "model", "requests"))


@dataclass(frozen=True)
class Measurement:
    """One stage of a model, measured.

    Attributes:
        stage: its answers, and every signal item by item.
        signals: of each signal by name its `value`, 95 % bootstrap interval `low` to `high` over `n` items, `unit`, and
            `delta`, the same of its paired difference to base. `f"{signal:.3f}"` shows value and interval.
        coherence: the valid signal with the least margin: 1 at base, 0 at its limit.
        verdict: the first check that failed, or `holds`; and why.
    """

    stage: StageResult
    signals: Summary
    coherence: Coherence
    verdict: Verdict

    @property
    def trait(self) -> SignalFigures:
        """The persona log-ratio, nats per token."""
        return self.signals[TRAIT]

    @property
    def answers(self) -> list[str]:
        """The greedy answers to the held-out prompts."""
        return [answer.text for answer in self.stage.answers]


@_EVALUATION.documented
def baseline(
    student: Accumulator,
    trait: Trait,
    *,
    choose_ways: bool = True,
    seed: int = 0,
    progress: Progress = silent,
    **keywords: Any,
) -> Baseline:
    """Base, and base under either persona, measured once: what every later measurement is compared with.

    Args:
        student: the student, whose base is measured.
        trait: its held-out prompts and its personas.
        choose_ways: whether questions and scenes are asked in the way that, on items held apart, tells most on this
            model, as in a run; trying them takes longer than measuring a few items. False: in lettered options.
        seed: of the bootstrap.
        progress: told (done, all) of the ways of asking that are tried, then of the answers of each of three stages.

    Returns:
        `metrics.base`, `metrics.prompted`, `metrics.opposite`: the signals of base, of base with the positive persona
        as system prompt and with the negative one; `validity`, what each signal is worth on this model.

    Raises:
        UserError: too few held-out prompts, no such scenes, or base itself is past every limit of coherence.
    """
    recipe = _EVALUATION.recipe(baseline, keywords)
    recipe.run.seed = seed
    model, asked = student.language_model, recipe.evaluation
    trait = prompts_that_fit(model, recipe, trait)
    vignettes = read_vignettes(asked.vignettes, asked.vignette_count, asked.perspectives)

    def run(step: Step[A], at: Path) -> A:
        return step.compute(progress)

    examination = examination_of(
        recipe,
        language_model=model,
        base=student.base,
        trait=trait,
        vignettes=vignettes,
        run=run,
        at=Path(),
        as_before=not choose_ways,
    )
    measured = of_base(examination, limits_of(asked), run, Path())
    refuse_incoherent(measured)
    return measured


def measure(
    student: Accumulator,
    against: Baseline,
    *,
    gates: tuple[float, float] = (1.0, 1.0),
    vector: Intervention | None = None,
    c: float | None = None,
    persona: str | None = None,
    name: str = "student",
    progress: Progress = silent,
) -> Measurement:
    """Measures the student, or any other state of the model, on the items of a baseline.

    Args:
        student: the student.
        against: what `baseline` measured.
        gates: `(c_history, c_current)`: (1, 1) is the student, (0, 0) base, (1, 0) the student before this round.
        vector: what steers it, if anything.
        c: its raw coefficient; None: the vector's calibrated `c_star`.
        persona: system prompt in place of the neutral one.
        name: of the stage.
        progress: told (answers finished, answers).

    Raises:
        UserError: a vector without a dose or of another model.
    """
    strength = 0.0 if vector is None else coefficient(vector, c)
    step = against.examination.stage(
        name, lambda: student.gates(*gates), persona=persona, intervention=vector, coefficient=strength
    )
    stage = step.compute(progress)
    signals = against.summary(stage)
    return Measurement(stage, signals, against.coherence(signals), against.verdict(signals))
