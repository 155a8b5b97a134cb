"""Measure: what the model says and what every readout reads, at one stage (base, prompted, steered, healed)."""

from dataclasses import dataclass
from pathlib import Path

from heal.config import Recipe
from heal.evaluation.evaluate import evaluate
from heal.evaluation.metrics import Summary
from heal.evaluation.neutral import NeutralTexts
from heal.evaluation.probe import Probe
from heal.evaluation.results import StageResult, summarise
from heal.evaluation.subject import Gates, Subject
from heal.evaluation.vignettes import Vignette
from heal.models.language_model import LanguageModel
from heal.progress import Progress
from heal.randomness import derive_seed, shuffled
from heal.run.step import Step
from heal.steering.intervention import Intervention
from heal.trait import Trait


@dataclass(frozen=True)
class Examination:
    """What all stages of a run are asked: the same items, in the same format.

    Attributes:
        base: context in which the model is the original.
        vignettes: scenes whose violated foundation is asked for; empty: none.
        probe: the format of yes/no questions.
        neutral_texts: texts on which the drift from base is measured.
    """

    language_model: LanguageModel
    base: Gates
    trait: Trait
    recipe: Recipe
    vignettes: tuple[Vignette, ...]
    probe: Probe
    neutral_texts: NeutralTexts

    @property
    def prompts(self) -> list[str]:
        """The held-out prompts: the same at every stage of every round of every seed."""
        settings = self.recipe.evaluation
        prompts = shuffled(list(self.trait.heldout_prompts), "heldout")
        return prompts[settings.skip : settings.skip + settings.prompts]

    @property
    def seed(self) -> int:
        """Of the bootstrap: every table of a run uses the same resampling."""
        return derive_seed(self.recipe.run.seed, "bootstrap")

    def summary(self, stage: StageResult, base: StageResult) -> Summary:
        """Each signal's interval at a stage, and its paired difference to base."""
        return summarise(stage, base, self.recipe.evaluation.resamples, self.seed)

    def stage(
        self,
        name: str,
        gates: Gates,
        *,
        system: str | None = None,
        intervention: Intervention | None = None,
        coefficient: float = 0.0,
    ) -> "Measure":
        """The step that measures one stage.

        Args:
            name: of the stage.
            gates: context in which the model is what is measured.
            system: system prompt; None: the neutral one.
            intervention, coefficient: what steers it, if anything.
        """
        neutral = self.recipe.model.system
        subject = Subject(
            stage=name,
            language_model=self.language_model,
            trait=self.trait,
            gates=gates,
            base=self.base,
            system=neutral if system is None else system,
            neutral=neutral,
            max_repetition=self.recipe.filter.max_repetition,
            questions=self.recipe.evaluation.questions,
            probe=self.probe.format,
            neutral_texts=self.neutral_texts,
            vignettes=self.vignettes,
            thinking=self.recipe.evaluation.thinking,
            intervention=intervention,
            coefficient=coefficient,
        )
        return Measure(subject, tuple(self.prompts), self.recipe.evaluation.tokens)


@dataclass(frozen=True)
class Measure(Step[StageResult]):
    """Answers the held-out prompts greedily and takes every readout of one stage."""

    subject: Subject
    prompts: tuple[str, ...]
    tokens: int

    @property
    def name(self) -> str:
        return self.subject.stage

    def compute(self, progress: Progress) -> StageResult:
        return evaluate(self.subject, self.prompts, self.tokens, progress)

    def load(self, folder: Path) -> StageResult:
        return StageResult.load(folder, self.name)

    def finding(self, artifact: StageResult) -> str:
        return artifact.headline()
