"""Judge: what a round comes to, from what its steps left; no model is run."""

from dataclasses import dataclass
from pathlib import Path

from heal.config import EvaluationConfig
from heal.evaluation.metrics import METRICS, DoseFigures, RoundMetrics, TrainingFigures
from heal.evaluation.results import Rows, StageResult, output_rows
from heal.evaluation.scenes import foundation_figures, target_of
from heal.evaluation.signal import limits_of
from heal.evaluation.verdict import coherence, verdict
from heal.evaluation.vignettes import Vignette
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
    load = staticmethod(Judged.load)

    def compute(self, progress: Progress) -> Judged:
        base, valid, limits = self.baseline.base, self.baseline.valid, limits_of(self.settings)
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
            foundations=foundation_figures(self.trait, self.scenes, self.healed, base),
            verdict=verdict(healed, limits, valid, target_of(self.trait, self.scenes)),
        )
        stages = [stage for stage in (base, self.steered, self.healed) if stage is not None]
        return Judged(metrics, [row for stage in stages for row in output_rows(stage)])

    def finding(self, artifact: Judged) -> str:
        return f"{artifact.metrics.verdict.label}: {artifact.metrics.verdict.reason}"
