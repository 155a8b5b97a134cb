"""Judge: what a round comes to, from what its steps left; no model is run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heal.config import EvaluationConfig
from heal.evaluation.metrics import (
    METRICS,
    DoseFigures,
    FoundationFigures,
    RoundMetrics,
    SurgicalFigures,
    TrainingFigures,
)
from heal.evaluation.readouts.moral_foundations import temperature_of
from heal.evaluation.results import Rows, StageResult, output_rows
from heal.evaluation.surgical import SurgicalInformedness, surgical_variants
from heal.evaluation.verdict import Limits, coherence, verdict
from heal.evaluation.vignettes import FOUNDATIONS, Vignette, soft_labels
from heal.generation.collect import Collection
from heal.progress import Progress
from heal.records import jsonl_bytes, read_jsonl, record_bytes
from heal.run.files import Files
from heal.run.manifest import JUDGE
from heal.run.step import Step
from heal.steps.baseline import Baseline
from heal.steps.calibrate import Dosed
from heal.trait import Trait

OUTPUTS = "outputs.jsonl"


@dataclass(frozen=True)
class Judged:
    """A round's metrics, and the answers of base, steered and healed, one a row."""

    metrics: RoundMetrics
    outputs: Rows

    def files(self) -> Files:
        return {METRICS: record_bytes(self.metrics), OUTPUTS: jsonl_bytes(self.outputs)}

    @staticmethod
    def load(folder: Path) -> "Judged":
        """UserError where a file is not what `files` wrote."""
        return Judged(RoundMetrics.load(folder), read_jsonl(folder / OUTPUTS))


@dataclass(frozen=True)
class Judge(Step[Judged]):
    """Sums a round up: the figures of each step, each signal's interval, coherence and the verdict.

    Attributes:
        number: of the round, from 1.
        settings: intervals and limits.
        cosine_to_first: of the round's vector with that of round 1.
        steered: None where it was not measured.
    """

    number: int
    trait: Trait
    scenes: tuple[Vignette, ...]
    settings: EvaluationConfig
    baseline: Baseline
    dosed: Dosed
    collection: Collection
    training: TrainingFigures
    cosine_to_first: float
    steered: StageResult | None
    healed: StageResult

    name = JUDGE

    def compute(self, progress: Progress) -> Judged:
        base, valid, limits = self.baseline.base, self.baseline.valid, Limits.of(self.settings)
        healed = self.baseline.summary(self.healed)
        calibration = self.dosed.calibration
        metrics = RoundMetrics(
            round=self.number,
            dose=DoseFigures(
                calibration.c_star,
                calibration.value,
                calibration.outcome,
                None if calibration.audit is None else calibration.audit.p95,
                self.collection.scale,
            ),
            generation=self.collection.figures,
            training=self.training,
            cosine_to_first=self.cosine_to_first,
            steered=None if self.steered is None else self.baseline.summary(self.steered),
            healed=healed,
            coherence=coherence(healed, limits, valid),
            valid=tuple(sorted(valid)),
            foundations=self._foundations(),
            verdict=verdict(healed, limits, valid, **self._target()),
        )
        stages = [stage for stage in (base, self.steered, self.healed) if stage is not None]
        return Judged(metrics, [row for stage in stages for row in output_rows(stage)])

    def load(self, folder: Path) -> Judged:
        return Judged.load(folder)

    def finding(self, artifact: Judged) -> str:
        return f"{artifact.metrics.verdict.label}: {artifact.metrics.verdict.reason}"

    def _target(self) -> dict[str, Any]:
        """The foundation that the trait means, which way, and the others, where trait and recipe have such a thing."""
        meant = self.trait.foundation
        if not meant or not self.scenes:
            return {}
        off_target = [f"clr_{name}" for name in FOUNDATIONS if name != meant]
        return {"target": f"clr_{meant}", "intent": self.trait.intent, "off_target": off_target}

    def _foundations(self) -> FoundationFigures | None:
        """Temperature and surgical informedness; None without scenes."""
        if not self.scenes:
            return None
        clr = {name: self.healed.signal(f"clr_{name}").values for name in FOUNDATIONS}
        temperature = temperature_of(clr, soft_labels(self.scenes))
        if not self.trait.foundation:
            return FoundationFigures(temperature)
        # A student has no -C, so base is its other side.
        sides = surgical_sides(
            self.trait, self.scenes, base=self.baseline.base, up=self.healed, down=self.baseline.base
        )
        figures = {name: SurgicalFigures(**asdict(side), other_side="base") for name, side in sides.items()}
        return FoundationFigures(temperature, figures)


def surgical_sides(
    trait: Trait, scenes: Sequence[Vignette], *, base: StageResult, up: StageResult, down: StageResult
) -> dict[str, SurgicalInformedness]:
    """Surgical informedness by variant of what base, +C and -C said about the scenes, for the trait's foundation."""
    shares = soft_labels(scenes)[:, list(FOUNDATIONS).index(trait.foundation)]
    return surgical_variants(
        base.signal("wrongness").values,
        up.signal("wrongness").values,
        down.signal("wrongness").values,
        trait.intent,
        up.mean("wrongness_mass"),
        down.mean("wrongness_mass"),
        [scene.foundation == trait.foundation for scene in scenes],
        shares.tolist() if all(scene.labels for scene in scenes) else None,
    )
