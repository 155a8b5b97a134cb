"""Measure: what the model says and what every readout reads, at one stage (base, prompted, steered, healed)."""

import math
from dataclasses import dataclass
from pathlib import Path

from heal.config import EvaluationConfig, Recipe
from heal.console import counted
from heal.errors import UserError
from heal.evaluation.evaluate import evaluate
from heal.evaluation.metrics import Summary
from heal.evaluation.neutral import NeutralTexts
from heal.evaluation.probe import Probe
from heal.evaluation.readouts.judge import JUDGED_COHERENCE, JUDGED_TRAIT
from heal.evaluation.results import StageResult, headline, summarise
from heal.evaluation.subject import Gates, Setup, Subject
from heal.evaluation.vignettes import Vignette
from heal.models.language_model import LanguageModel
from heal.places.trial import answers_read
from heal.progress import Progress
from heal.prompts import drawn
from heal.randomness import derive_seed
from heal.run.step import Step
from heal.steering.intervention import Intervention
from heal.trait import Trait


def held_out_prompts(trait: Trait, settings: EvaluationConfig) -> list[str]:
    """The held-out prompts of an evaluation: the same at every stage of every round of every seed.

    Raises:
        UserError: `evaluation.skip` leaves too few.
    """
    prompts = drawn(trait, "heldout_prompts", "heldout")
    left = len(prompts) - settings.skip
    if left < 2:
        raise UserError(
            f"evaluation.skip={settings.skip}: leaves {counted(max(left, 0), 'held-out prompt')} of {trait.name}; "
            "2 needed"
        )
    return prompts[settings.skip : settings.skip + settings.prompts]


def setup_of(
    recipe: Recipe, language_model: LanguageModel, base: Gates, trait: Trait, vignettes: tuple[Vignette, ...] = ()
) -> Setup:
    """What the recipe asks the model at every stage, before the ways of asking are chosen for it.

    Raises:
        UserError: see `held_out_prompts`.
    """
    asked = recipe.evaluation
    return Setup(
        language_model=language_model,
        trait=trait,
        base=base,
        system=recipe.model.system,
        prompts=held_out_prompts(trait, asked),
        tokens=asked.tokens,
        max_repetition=recipe.filter.max_repetition,
        questions=asked.questions,
        vignettes=vignettes,
        thinking=asked.thinking,
        neutral_texts=NeutralTexts(language_model, recipe.model.system, asked.neutral_texts, trait.neutral),
    )


@dataclass(frozen=True)
class Examination:
    """What all stages of a run are asked, and how what they answer is summed up.

    Attributes:
        setup: the items, and the ways in which they are asked.
        probe: the format of the yes/no slot that interrupts answers, with those that were tried.
        resamples: of the bootstrap.
        seed: of the run: every table of a run uses the same resampling.
    """

    setup: Setup
    probe: Probe
    resamples: int
    seed: int

    def stage(
        self,
        name: str,
        gates: Gates,
        *,
        persona: str | None = None,
        intervention: Intervention | None = None,
        coefficient: float = 0.0,
    ) -> "Measure":
        """The step that measures one stage.

        Args:
            name: of the stage.
            gates: context in which the model is what is measured.
            persona: system prompt in place of the neutral one.
            intervention, coefficient: what steers it, if anything.
        """
        return Measure(Subject(self.setup, name, gates, persona, intervention, coefficient))

    def summary(self, stage: StageResult, other: StageResult) -> Summary:
        """Each signal's interval at a stage, and its paired difference to another one (base)."""
        return summarise(stage, other, self.resamples, derive_seed(self.seed, "bootstrap"))


@dataclass(frozen=True)
class Measure(Step[StageResult]):
    """Answers the held-out prompts greedily and takes every readout of one stage."""

    subject: Subject

    @property
    def name(self) -> str:
        return self.subject.stage

    def compute(self, progress: Progress) -> StageResult:
        return evaluate(self.subject, progress)

    def load(self, folder: Path) -> StageResult:
        return StageResult.load(folder, self.name)

    def finding(self, artifact: StageResult) -> str:
        return headline(artifact)

    def warnings(self, artifact: StageResult) -> list[str]:
        found, answers = [], counted(len(artifact.answers), "held-out prompt")
        if unclosed := sum(answer.unclosed for answer in artifact.answers):
            found.append(
                f"{self.name}: {unclosed} of {answers} without an answer: the thought was not closed within "
                "model.thinking_tokens"
            )
        for signal in artifact.signals:
            missing = sum(map(math.isnan, signal.values)) - unclosed
            if signal.name in (JUDGED_TRAIT.name, JUDGED_COHERENCE.name) and missing:
                found.append(
                    f"{self.name}: {missing} of {answers} without a score ({signal.name}): the judge gave no number, "
                    "or evaluation.judge.requests are used up"
                )
        return found


class Read(Measure):
    """Answers the held-out prompts greedily, and takes the readouts that rest on the answers alone."""

    def compute(self, progress: Progress) -> StageResult:
        return answers_read(self.subject, self.subject.answer(progress))
