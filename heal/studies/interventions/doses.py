"""Every intervention at its dose: fitted or loaded, then calibrated towards either persona, each a step on disk."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from heal.dose.calibrate import Calibration, Goal, PathDivergence, prompt_divergence
from heal.dose.find import Prompts, find_dose, finding, off_target, short_audit
from heal.errors import UserError
from heal.progress import Progress
from heal.records import read_record, record_bytes
from heal.run.files import Files
from heal.run.folder import RunFolder
from heal.run.session import Session
from heal.run.step import Step
from heal.steering.extract import extract_as
from heal.steering.intervention import Signed
from heal.steering.load import load_intervention
from heal.steering.vector import SteeringVector
from heal.steering.weights import WeightDifference
from heal.studies.interventions.prompts import personas
from heal.studies.interventions.request import Asked, folder_name
from heal.studies.weight_difference.gate import adapter_gate

FILE = "intervention.safetensors"
FIT = "extract"  # the step that fits an intervention, or reads a saved one


@dataclass(frozen=True)
class Arm:
    """One thing that shifts the model, turned one way: `name` as tables call it, `sign` +1 towards the positive
    persona and -1 towards the negative one."""

    name: str
    sign: int

    @property
    def label(self) -> str:
        """Name and sign."""
        return f"{self.name} {mark(self.sign)}"


@dataclass(frozen=True)
class Dosed(Arm):
    """One intervention, turned one way, at its dose.

    Attributes:
        intervention: with positive coefficients for that sign.
        calibration: what found the dose.
        seconds: that fitting (or loading) and calibration took.
    """

    intervention: Signed
    calibration: Calibration
    seconds: float

    @property
    def c_star(self) -> float | None:
        """The signed raw coefficient of the dose."""
        return self.sign * self.calibration.c_star

    @property
    def spent(self) -> float:
        """p95 KL at the dose, nats."""
        return self.calibration.value

    @property
    def on_target(self) -> bool | None:
        """Whether that is the target."""
        return self.calibration.on_target

    def coefficient(self, alpha: float = 1.0) -> float:
        """The coefficient of `intervention` at a multiple of the dose."""
        return alpha * self.calibration.c_star


@dataclass(frozen=True)
class Prompted(Arm):
    """A persona as system prompt, and the KL that it spends by itself."""

    system: str
    divergence: PathDivergence
    seconds: float

    @property
    def c_star(self) -> float | None:
        """None: a prompt has no coefficient."""
        return None

    @property
    def spent(self) -> float:
        """p95 KL, nats."""
        return self.divergence.p95

    @property
    def on_target(self) -> bool | None:
        """None: nothing was aimed at."""
        return None


def mark(sign: int) -> str:
    """`+` or `-`, as names of steps and files end."""
    return "+" if sign > 0 else "-"


def place(session: Session, name: str) -> Path:
    """The folder of an intervention's steps."""
    return session.folder.path / "interventions" / folder_name(name)


def dose_all(session: Session, interventions: Sequence[Asked], signs: Sequence[int]) -> list[Dosed]:
    """Fits or loads every intervention and finds its doses; what was done before is read."""
    recipe, trait = session.recipe, session.trait
    prompts = Prompts.drawn(trait, recipe.calibration, recipe.run.seed)
    session.console.warn(*short_audit(prompts, recipe.calibration))
    dosed: list[Dosed] = []
    for asked in interventions:
        session.console.title(asked.name)
        at = place(session, asked.name)
        intervention = _unchanged(session, asked, session.run(Fit(session, asked), at).intervention)
        start = None
        for sign in signs:
            step = CalibrateSigned(session, asked.name, intervention, sign, prompts, start)
            calibration = session.run(step, at).calibration
            start = start or calibration.c_star
            seconds = session.folder.seconds(at)
            took = seconds[FIT] + seconds[step.name]
            dosed.append(Dosed(asked.name, sign, Signed(intervention, sign), calibration, took))
    return dosed


def prompted(session: Session, signs: Sequence[int]) -> list[Prompted]:
    """The persona prompts, each with its KL on the calibration prompts."""
    recipe, spent = session.recipe, []
    prompts = Prompts.drawn(session.trait, recipe.calibration, recipe.run.seed)
    for (name, sign), system in personas(session.trait).items():
        if sign in signs:
            session.console.title(f"{name} {mark(sign)}")
            at, step = place(session, name), Spend(session, system, sign, prompts)
            divergence = session.run(step, at).divergence
            spent.append(Prompted(name, sign, system, divergence, session.folder.seconds(at)[step.name]))
    return spent


@dataclass(frozen=True)
class Fitted:
    """The intervention itself."""

    intervention: SteeringVector | WeightDifference

    def files(self) -> Files:
        return {FILE: self.intervention.to_bytes()}


@dataclass(frozen=True)
class Fit(Step[Fitted]):
    """Fits a steering method on base, or reads a saved intervention (or the gate of a run's student)."""

    session: Session
    asked: Asked

    name = FIT

    def compute(self, progress: Progress) -> Fitted:
        if self.asked.path is not None:
            return Fitted(_saved(self.session, self.asked.path))
        session = self.session
        settings = replace(session.recipe.steer, method=self.asked.name)
        with session.accumulator.student():
            return Fitted(extract_as(settings, session.model, session.trait, progress))

    def load(self, folder: Path) -> Fitted:
        return Fitted(load_intervention(folder / FILE))

    def finding(self, artifact: Fitted) -> str:
        if isinstance(artifact.intervention, SteeringVector) and self.asked.path is None:
            sites = ", ".join(map(str, artifact.intervention.states))
            return f"{self.asked.name} from {self.session.recipe.steer.pairs} pairs, at {sites}"
        return f"read from {self.asked.path}"


@dataclass(frozen=True)
class SignedDose:
    """The dose of an intervention that is turned one way; a vector is saved with it, as `heal export` takes it."""

    intervention: SteeringVector | WeightDifference
    sign: int
    calibration: Calibration

    def files(self) -> Files:
        files = {f"calibration{mark(self.sign)}.json": record_bytes(self.calibration)}
        if isinstance(self.intervention, SteeringVector):
            vector = self.intervention.with_c_star(self.sign * self.calibration.c_star)
            files[f"vector{mark(self.sign)}.safetensors"] = vector.to_bytes()
        return files


@dataclass(frozen=True)
class CalibrateSigned(Step[SignedDose]):
    """Finds the dose of an intervention towards one persona."""

    session: Session
    method: str
    intervention: SteeringVector | WeightDifference
    sign: int
    prompts: Prompts
    start: float | None

    @property
    def name(self) -> str:
        return f"calibrate{mark(self.sign)}"

    def compute(self, progress: Progress) -> SignedDose:
        session, settings = self.session, self.session.recipe.calibration
        with session.accumulator.student():
            calibration = find_dose(
                session.model,
                Signed(self.intervention, self.sign),
                self.prompts,
                system=session.recipe.model.system,
                tokens=settings.tokens,
                goal=Goal.of(settings),
                base=session.accumulator.base,
                start=self.start,
                progress=progress,
            )
        return SignedDose(self.intervention, self.sign, calibration)

    def load(self, folder: Path) -> SignedDose:
        calibration = read_record(Calibration, folder / f"calibration{mark(self.sign)}.json")
        return SignedDose(self.intervention, self.sign, calibration)

    def finding(self, artifact: SignedDose) -> str:
        return finding(artifact.calibration, self.prompts)

    def warnings(self, artifact: SignedDose) -> list[str]:
        label = f"{self.method} {mark(self.sign)}"
        return off_target(label, self.intervention.dosing, artifact.calibration)


@dataclass(frozen=True)
class Spent:
    """What a system prompt spends."""

    sign: int
    divergence: PathDivergence

    def files(self) -> Files:
        return {f"divergence{mark(self.sign)}.json": record_bytes(self.divergence)}


@dataclass(frozen=True)
class Spend(Step[Spent]):
    """The KL of a persona's system prompt, as it is: a prompt has no dose."""

    session: Session
    system: str
    sign: int
    prompts: Prompts

    @property
    def name(self) -> str:
        return f"divergence{mark(self.sign)}"

    def compute(self, progress: Progress) -> Spent:
        session, chat = self.session, self.session.model.chat
        shifted, neutral = (
            [chat.ids(system, text) for text in self.prompts.calibration]
            for system in (self.system, session.recipe.model.system)
        )
        with session.accumulator.student():
            divergence = prompt_divergence(session.model, shifted, neutral, session.recipe.calibration.tokens)
        return Spent(self.sign, divergence)

    def load(self, folder: Path) -> Spent:
        return Spent(self.sign, read_record(PathDivergence, folder / f"divergence{mark(self.sign)}.json"))

    def finding(self, artifact: Spent) -> str:
        return f"p95 KL {artifact.divergence.p95:.2f} nats, as it is: a prompt has no dose"


def _unchanged(
    session: Session, asked: Asked, fitted: SteeringVector | WeightDifference
) -> SteeringVector | WeightDifference:
    """What the study has; UserError where a saved intervention has changed since the study read it."""
    if asked.path is not None and _saved(session, asked.path).to_bytes() != fitted.to_bytes():
        raise UserError(f"{asked.path}: changed since this study read it; give run.name=... to start a new one")
    return fitted


def _saved(session: Session, path: Path) -> SteeringVector | WeightDifference:
    """A saved intervention, or the gate of a run's student; refused where it is not of this model."""
    intervention = adapter_gate(RunFolder(path)) if path.is_dir() else load_intervention(path)
    intervention.check_fits(session.model)
    return intervention
