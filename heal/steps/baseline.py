"""Baseline: base, and base under either persona as system prompt, measured once; and what each readout is worth.

Everything a round is held against: the ways in which the model is asked are chosen here, base's answers are taken, and
every signal is judged valid for the model or not.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from heal.config import Recipe
from heal.console import counted
from heal.errors import UserError
from heal.evaluation.asking.choose import choose
from heal.evaluation.asking.way import Asking
from heal.evaluation.evaluate import forced_choices
from heal.evaluation.judging.judge import judge_of
from heal.evaluation.metrics import METRICS, BaselineMetrics, Coherence, Summary, Verdict
from heal.evaluation.neutral import NeutralTexts
from heal.evaluation.probe import Probe, choose_probe
from heal.evaluation.readouts.persona import PERSONA, of_several
from heal.evaluation.results import OUTPUTS, Rows, StageResult, output_rows
from heal.evaluation.scenes import target_of
from heal.evaluation.signal import MIN_MASS, TRAIT, Evidence, Limits, Validity, limited, limits_of
from heal.evaluation.subject import Gates, Subject
from heal.evaluation.validity import doubts, valid_names, validity
from heal.evaluation.verdict import coherence, verdict
from heal.evaluation.vignettes import Vignette
from heal.models.language_model import LanguageModel
from heal.progress import Progress
from heal.randomness import derive_seed
from heal.records import as_record, json_bytes, jsonl_bytes, read_json, read_jsonl, read_record, record_bytes
from heal.run.files import Files
from heal.run.manifest import JUDGE
from heal.run.session import Session
from heal.run.step import Runs, Step
from heal.steps.calibrate import Dosed
from heal.steps.measure import Examination, Read, setup_of
from heal.trait import Trait

PROBE, WAYS = "probe.json", "ways.json"


@dataclass(frozen=True)
class Baseline:
    """What every round is held against.

    Attributes:
        examination: what every stage is asked.
        limits: of coherence.
        base: base's signals, item by item.
        metrics: the signals of base, and of base under either persona, in numbers.
    """

    examination: Examination
    limits: Limits
    base: StageResult
    metrics: BaselineMetrics

    @property
    def validity(self) -> dict[str, Validity]:
        """What each signal is worth on this model."""
        return self.metrics.validity

    @property
    def valid(self) -> frozenset[str]:
        """The signals that are valid."""
        return valid_names(self.validity)

    def summary(self, stage: StageResult) -> Summary:
        """Each signal's interval at a stage, and its paired difference to base."""
        return self.examination.summary(stage, self.base)

    def coherence(self, summary: Summary) -> Coherence:
        """The worst of the valid coherence signals at a stage."""
        return coherence(summary, self.limits, self.valid)

    def verdict(self, summary: Summary) -> Verdict:
        """Whether a stage has more of the trait and is as coherent as base."""
        setup = self.examination.setup
        return verdict(summary, self.limits, self.valid, target_of(setup.trait, setup.vignettes))


def measure_baseline(session: Session) -> Baseline:
    """The baseline of a run: what was measured before is read.

    Raises:
        UserError: base itself is past every limit of coherence.
    """
    examination = examine(session)
    baseline = of_base(examination, limits_of(session.recipe.evaluation), session.run, session.folder.baseline)
    asking = {name: asdict(asking) for name, asking in baseline.metrics.asking.items()}
    found = {"probe": asdict(examination.probe), "asking": asking, "not_valid": doubts(baseline.validity)}
    session.tracker.event("validity", found)
    session.tracker.table("ways", way_rows(baseline.metrics.asking))
    refuse_incoherent(baseline)
    return baseline


def way_rows(asking: Mapping[str, Asking]) -> Rows:
    """One row for each way of asking that was tried; `value`, `low` and `high` are its informedness, over `n` items."""
    return [
        {"question": question, "way": label, "chosen": label == chosen.label, **asdict(tried.informedness)}
        | {"mass": tried.mass, "accuracy": tried.accuracy, "valid": tried.valid, "why": tried.why}
        for question, chosen in asking.items()
        for label, tried in chosen.tried.items()
    ]


def of_base(examination: Examination, limits: Limits, run: Runs, at: Path) -> Baseline:
    """Base, and base under either persona, measured and judged by `run` in the folder `at`."""
    off, trait = examination.setup.base, examination.setup.trait
    base = run(examination.stage("base", off), at)
    prompted = run(examination.stage("prompted", off, persona=trait.positive), at)
    opposite = run(examination.stage("opposite", off, persona=trait.negative), at)
    own = {
        side: {
            part.name: run(Read(examination.stage(f"{side}_{part.name}", off, persona=getattr(part, side)).subject), at)
            for part in trait.parts
        }
        for side in ("positive", "negative")
    }
    judged = run(JudgeBaseline(examination, base, prompted, opposite, limits, **own), at)
    return Baseline(examination, limits, base, judged.metrics)


def refuse_incoherent(baseline: Baseline) -> None:
    """Raises UserError where base itself is past every limit of coherence."""
    if not baseline.valid & limited().keys():
        raise UserError(
            "base itself is past every limit of coherence, so no round could be judged; raise the limits "
            f"({', '.join(f'evaluation.{limit.key}' for limit in limited().values())}) or take another model"
        )


def unreadable(baseline: Baseline) -> str:
    """Why the trait cannot be read on this model, in words; empty where it can."""
    judged = baseline.validity.get(TRAIT)
    return "" if judged is None or judged.valid else judged.why


def measure_doses(session: Session, baseline: Baseline, dosed: Dosed) -> None:
    """Raw steering, for comparison: base under the first round's vector at every dose that the recipe asks for."""
    at, off, stages = session.folder.doses, session.accumulator.base, []
    for alpha in session.recipe.evaluation.doses:
        c = alpha * dosed.c_star
        stage = baseline.examination.stage(f"dose_{alpha:g}", off, intervention=dosed.vector, coefficient=c)
        stages.append(session.run(stage, at))
    if stages:
        session.run(JudgeDoses(baseline, tuple(stages)), at)


def examine(session: Session) -> Examination:
    """What all stages of a run are asked, in the ways that are chosen for the model, once."""
    at = session.folder.baseline
    # A run that measured base before there were several ways goes on as it began.
    as_before = session.folder.finished(at, "base") and not session.folder.finished(at, ChooseWays.name)
    return examination_of(
        session.recipe,
        language_model=session.model,
        base=session.accumulator.base,
        trait=session.trait,
        vignettes=session.vignettes,
        run=session.run,
        at=at,
        as_before=as_before,
    )


def examination_of(
    recipe: Recipe,
    *,
    language_model: LanguageModel,
    base: Gates,
    trait: Trait,
    vignettes: tuple[Vignette, ...],
    run: Runs,
    at: Path,
    as_before: bool = False,
) -> Examination:
    """The items of the recipe, and the ways in which this model is asked them, chosen by `run` in the folder `at`.

    Args:
        recipe: says which items, and how many.
        language_model: the model.
        base: context in which it is the original one.
        trait: the trait.
        vignettes: the scenes.
        run: gets the choosing done.
        at: the baseline's folder, where a judge keeps its scores as well.
        as_before: every forced choice in the one way that there was before several were tried.
    """
    probe = run(ChooseProbe(language_model, base, recipe.model.system), at).probe
    judge = judge_of(recipe.evaluation.judge, trait, at)
    setup = replace(setup_of(recipe, language_model, base, trait, vignettes), probe=probe.format, judge=judge)
    if not as_before:
        choose = ChooseWays(Subject(setup, "base", base), recipe.evaluation.resamples, recipe.run.seed)
        setup = replace(setup, asking=run(choose, at).asking)
    return Examination(setup, probe, recipe.evaluation.resamples, recipe.run.seed)


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
    """Tries the formats of a yes/no question on base, interrupted in texts that no evaluation uses."""

    language_model: LanguageModel
    base: Gates
    system: str

    name = "probe"
    load = staticmethod(Chosen.load)

    def compute(self, progress: Progress) -> Chosen:
        texts = NeutralTexts.apart(self.language_model, self.system)
        return Chosen(choose_probe(self.language_model, texts.rows(), self.base))

    def finding(self, artifact: Chosen) -> str:
        tried = ", ".join(f"{name} {mass:.2f}" for name, mass in artifact.probe.masses.items())
        return f"{artifact.probe.format.name}; base's mass on the answers: {tried}"

    def warnings(self, artifact: Chosen) -> list[str]:
        probe = artifact.probe
        if probe.mass >= MIN_MASS:
            return []
        return [
            f"the model puts only {probe.mass:.2f} on yes or no in its best format ({probe.format.name}): "
            "what is read at that slot is marked as not valid"
        ]


@dataclass(frozen=True)
class Ways:
    """The way of asking each forced choice, by its name."""

    asking: dict[str, Asking]

    def files(self) -> Files:
        return {WAYS: json_bytes({name: asdict(asking) for name, asking in self.asking.items()})}

    @staticmethod
    def load(folder: Path) -> "Ways":
        return Ways(as_record(dict[str, Asking], read_json(folder / WAYS), folder / WAYS))


@dataclass(frozen=True)
class ChooseWays(Step[Ways]):
    """Tries every way of asking each forced choice on base, on items that no evaluation uses.

    Attributes:
        base: the base stage; its setup has no ways yet.
        resamples, seed: of the bootstrap.
    """

    base: Subject
    resamples: int
    seed: int

    name = "ways"
    load = staticmethod(Ways.load)

    def compute(self, progress: Progress) -> Ways:
        asking = {}
        for choice in forced_choices(self.base.setup):
            if chosen := choose(choice, self.base, self.resamples, derive_seed(self.seed, "bootstrap"), progress):
                asking[choice.name] = chosen
        return Ways(asking)

    def finding(self, artifact: Ways) -> str:
        return "; ".join(
            f"{name} by {asking.label} (informedness {asking.tried[asking.label].informedness.value:+.2f})"
            for name, asking in artifact.asking.items()
        )


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
    """Judges on base, and on base under either persona, which readouts say anything about this model.

    Attributes:
        positive, negative: base under the personas of each of several traits by itself, by trait; none of one.
    """

    examination: Examination
    base: StageResult
    prompted: StageResult
    opposite: StageResult
    limits: Limits
    positive: Mapping[str, StageResult] = field(default_factory=dict)
    negative: Mapping[str, StageResult] = field(default_factory=dict)

    name = JUDGE
    load = staticmethod(JudgedBaseline.load)

    def compute(self, progress: Progress) -> JudgedBaseline:
        stages = (self.base, self.prompted, self.opposite)
        base, prompted, opposite = (self.examination.summary(stage, self.base) for stage in stages)
        asking = dict(self.examination.setup.asking)
        personas = self.examination.summary(self.prompted, self.opposite)
        if self.positive:  # a trait's readout is judged under its own personas
            personas |= self.examination.summary(_own(self.positive), _own(self.negative))
        worth = validity(Evidence(base, personas, asking), self.limits)
        rows = [row for stage in stages for row in output_rows(stage)]
        return JudgedBaseline(BaselineMetrics(base, prompted, opposite, worth, asking), rows)

    def finding(self, artifact: JudgedBaseline) -> str:
        worth = artifact.metrics.validity
        return f"{len(valid_names(worth))} of {len(worth)} signals are valid for this model"

    def warnings(self, artifact: JudgedBaseline) -> list[str]:
        reasons = doubts(artifact.metrics.validity)
        return [f"not valid for this model, so no verdict rests on it: {reason}" for reason in reasons]


def _own(stages: Mapping[str, StageResult]) -> StageResult:
    """The persona log-ratio of each of several traits at a stage of its own, and their mean."""
    by_trait = {name: stage.signal(PERSONA.of(name).name).values for name, stage in stages.items()}
    return StageResult("own", (), tuple(of_several(by_trait)))


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
