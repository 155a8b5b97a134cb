"""Judge: what a round comes to, from what its steps left; no model is run."""

from dataclasses import dataclass
from pathlib import Path

from heal.evaluation.metrics import METRICS, DoseFigures, DriftFigures, RoundMetrics, TrainingFigures
from heal.evaluation.results import OUTPUTS, Rows, StageResult, output_rows
from heal.evaluation.scenes import foundation_figures
from heal.generation.collect import Collection
from heal.progress import Progress
from heal.records import jsonl_bytes, read_jsonl, record_bytes
from heal.run.files import Files
from heal.run.manifest import JUDGE
from heal.run.step import Step
from heal.steps.baseline import Baseline
from heal.steps.calibrate import Dosed


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
        cosine_to_first: of the round's vector with that of round 1.
        steered: None where it was not measured.
        drift: of the healed student; None where it was not measured.
    """

    number: int
    baseline: Baseline
    dosed: Dosed
    collection: Collection
    training: TrainingFigures
    cosine_to_first: float
    steered: StageResult | None
    healed: StageResult
    drift: DriftFigures | None = None

    name = JUDGE
    load = staticmethod(Judged.load)

    def compute(self, progress: Progress) -> Judged:
        base, setup = self.baseline.base, self.baseline.examination.setup
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
            coherence=self.baseline.coherence(healed),
            valid=tuple(sorted(self.baseline.valid)),
            foundations=foundation_figures(setup.trait, setup.vignettes, self.healed, base),
            verdict=self.baseline.verdict(healed),
            drift=self.drift,
        )
        stages = [stage for stage in (base, self.steered, self.healed) if stage is not None]
        return Judged(metrics, [row for stage in stages for row in output_rows(stage)])

    def finding(self, artifact: Judged) -> str:
        return f"{artifact.metrics.verdict.label}: {artifact.metrics.verdict.reason}"
