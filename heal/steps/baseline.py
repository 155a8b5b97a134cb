"""Baseline: base, and base under either persona as system prompt, measured once; and what each readout is worth.

Everything a round is held against: the format of the yes/no probe is chosen here, base's answers are taken, and every
signal is judged valid for the model or not.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from heal.console import counted
from heal.errors import UserError
from heal.evaluation.metrics import BaselineMetrics, Summary
from heal.evaluation.neutral import NeutralTexts
from heal.evaluation.probe import Probe, choose_probe
from heal.evaluation.results import Rows, StageResult, output_rows
from heal.evaluation.signal import MIN_MASS, Limits, Validity, limited, limits_of
from heal.evaluation.subject import Setup
from heal.evaluation.validity import doubts, valid_names, validity
from heal.progress import Progress
from heal.records import as_record, json_bytes, jsonl_bytes, read_json, read_jsonl, read_record, record_bytes
from heal.run.files import Files
from heal.run.manifest import JUDGE
from heal.run.session import Session
from heal.run.step import Step
from heal.steps.calibrate import Dosed
from heal.steps.measure import Examination, held_out_prompts

PROBE, METRICS, OUTPUTS = "probe.json", "metrics.json", "outputs.jsonl"


@dataclass(frozen=True)
class Baseline:
    """What every round is held against.

    Attributes:
        examination: what every stage is asked.
        base: base's signals, item by item.
        validity: what each signal is worth on this model.
    """

    examination: Examination
    base: StageResult
    validity: dict[str, Validity]

    @property
    def valid(self) -> frozenset[str]:
        """The signals that are valid."""
        return valid_names(self.validity)

    def summary(self, stage: StageResult) -> Summary:
        """Each signal's interval at a stage, and its paired difference to base."""
        return self.examination.summary(stage, self.base)


def measure_baseline(session: Session) -> Baseline:
    """The baseline of a run: what was measured before is read.

    Raises:
        UserError: base itself is past every limit of coherence.
    """
    probe, examination = examine(session)
    off, at, trait, recipe = session.accumulator.base, session.folder.baseline, session.trait, session.recipe.evaluation
    base = session.run(examination.stage("base", off), at)
    prompted = session.run(examination.stage("prompted", off, persona=trait.positive), at)
    opposite = session.run(examination.stage("opposite", off, persona=trait.negative), at)
    judged = session.run(JudgeBaseline(examination, base, prompted, opposite, limits_of(recipe)), at)

    worth = judged.metrics.validity
    reasons = doubts(worth)
    session.tracker.event("validity", {"probe": asdict(probe), "not_valid": reasons})
    for reason in reasons:
        session.console.warn(f"not valid for this model, so no verdict rests on it: {reason}")
    if not valid_names(worth) & limited().keys():
        raise UserError(
            "base itself is past every limit of coherence, so no round could be judged; raise the limits "
            f"({', '.join(f'evaluation.{limit.key}' for limit in limited().values())}) or take another model"
        )
    return Baseline(examination, base, worth)


def measure_doses(session: Session, baseline: Baseline, dosed: Dosed) -> None:
    """Raw steering, for comparison: base under the first round's vector at every dose that the recipe asks for."""
    at, off, stages = session.folder.doses, session.accumulator.base, []
    for alpha in session.recipe.evaluation.doses:
        c = alpha * dosed.c_star
        stage = baseline.examination.stage(f"dose_{alpha:g}", off, intervention=dosed.vector, coefficient=c)
        stages.append(session.run(stage, at))
    if stages:
        session.run(JudgeDoses(baseline, tuple(stages)), at)


def examine(session: Session) -> tuple[Probe, Examination]:
    """The format of yes/no questions, chosen once for the model, and what all stages of a run are asked in it."""
    recipe = session.recipe
    texts = NeutralTexts(session.model, recipe.model.system, recipe.evaluation.neutral_texts)
    probe = session.run(ChooseProbe(session, texts), session.folder.baseline).probe
    if probe.mass < MIN_MASS:
        session.console.warn(
            f"the model puts only {probe.mass:.2f} on yes or no in its best format ({probe.format.name}): "
            "what is read at that slot is marked as not valid"
        )
    return probe, Examination(setup_of(session, probe, texts), recipe.evaluation.resamples, recipe.run.seed)


def setup_of(session: Session, probe: Probe, texts: NeutralTexts) -> Setup:
    """The items of the recipe, in the probe's format."""
    recipe = session.recipe
    return Setup(
        language_model=session.model,
        trait=session.trait,
        base=session.accumulator.base,
        system=recipe.model.system,
        prompts=held_out_prompts(session.trait, recipe.evaluation),
        tokens=recipe.evaluation.tokens,
        max_repetition=recipe.filter.max_repetition,
        questions=recipe.evaluation.questions,
        vignettes=session.vignettes,
        thinking=recipe.evaluation.thinking,
        probe=probe.format,
        neutral_texts=texts,
    )


@dataclass(frozen=True)
class Chosen:
    """The format of the probe, with base's mass in each that was tried."""

    probe: Probe

    def files(self) -> Files:
        return {PROBE: record_bytes(self.probe)}

    @staticmethod
    def load(folder: Path) -> "Chosen":
        return Chosen(read_record(Probe, folder / PROBE))


@dataclass(frozen=True)
class ChooseProbe(Step[Chosen]):
    """Tries the formats of a yes/no question on base, and takes the one that it answers in."""

    session: Session
    texts: NeutralTexts

    name = "probe"
    load = staticmethod(Chosen.load)

    def compute(self, progress: Progress) -> Chosen:
        return Chosen(choose_probe(self.session.model, self.texts.rows(), self.session.accumulator.base))

    def finding(self, artifact: Chosen) -> str:
        tried = ", ".join(f"{name} {mass:.2f}" for name, mass in artifact.probe.masses.items())
        return f"{artifact.probe.format.name}; base's mass on the answers: {tried}"


@dataclass(frozen=True)
class JudgedBaseline:
    """The baseline's metrics, and the answers of its stages, one a row."""

    metrics: BaselineMetrics
    outputs: Rows

    def files(self) -> Files:
        return {METRICS: record_bytes(self.metrics), OUTPUTS: jsonl_bytes(self.outputs)}

    @staticmethod
    def load(folder: Path) -> "JudgedBaseline":
        return JudgedBaseline(BaselineMetrics.load(folder), read_jsonl(folder / OUTPUTS))


@dataclass(frozen=True)
class JudgeBaseline(Step[JudgedBaseline]):
    """Judges on base, and on base under either persona, which readouts say anything about this model."""

    examination: Examination
    base: StageResult
    prompted: StageResult
    opposite: StageResult
    limits: Limits

    name = JUDGE
    load = staticmethod(JudgedBaseline.load)

    def compute(self, progress: Progress) -> JudgedBaseline:
        stages = (self.base, self.prompted, self.opposite)
        base, prompted, opposite = (self.examination.summary(stage, self.base) for stage in stages)
        worth = validity(base, self.examination.summary(self.prompted, self.opposite), self.limits)
        rows = [row for stage in stages for row in output_rows(stage)]
        return JudgedBaseline(BaselineMetrics(base, prompted, opposite, worth), rows)

    def finding(self, artifact: JudgedBaseline) -> str:
        worth = artifact.metrics.validity
        return f"{len(valid_names(worth))} of {len(worth)} signals are valid for this model"


@dataclass(frozen=True)
class DoseSummaries:
    """The signals of base under the first vector, by stage (`dose_0.5`)."""

    stages: dict[str, Summary]

    def files(self) -> Files:
        return {METRICS: json_bytes(asdict(self)["stages"])}

    @staticmethod
    def load(folder: Path) -> "DoseSummaries":
        path = folder / METRICS
        return DoseSummaries(as_record(dict[str, Summary], read_json(path), path))


@dataclass(frozen=True)
class JudgeDoses(Step[DoseSummaries]):
    """Sums up base under the first vector at every dose."""

    baseline: Baseline
    stages: tuple[StageResult, ...]

    name = JUDGE
    load = staticmethod(DoseSummaries.load)

    def compute(self, progress: Progress) -> DoseSummaries:
        return DoseSummaries({stage.stage: self.baseline.summary(stage) for stage in self.stages})

    def finding(self, artifact: DoseSummaries) -> str:
        return f"base at {counted(len(artifact.stages), 'dose')} of the first vector"
