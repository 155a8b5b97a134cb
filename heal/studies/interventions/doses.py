"""Every intervention at its dose: fitted or loaded, then calibrated towards either persona, each a stage on disk."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from heal.console import Stage
from heal.dose.calibrate import Calibration, PathDivergence, prompt_divergence
from heal.errors import UserError
from heal.records import json_bytes, read_json
from heal.run.folder import RunFolder
from heal.session import Session
from heal.stages import Files, calibration_prompts, find_dose, stage, warn_of_a_short_audit, warn_of_dose
from heal.steering.extract import contexts, extract
from heal.steering.intervention import Intervention, Signed
from heal.steering.load import load_intervention
from heal.steering.settings import method_settings
from heal.steering.vector import SteeringVector
from heal.steering.weights import WeightDifference
from heal.studies.interventions.asked import Asked, folder_name
from heal.studies.interventions.prompts import personas
from heal.studies.weight_difference.gate import adapter_gate

FILE = "intervention.safetensors"


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
    """`+` or `-`, as names of stages and files end."""
    return "+" if sign > 0 else "-"


def place(session: Session, name: str) -> Path:
    """The folder of an intervention's stages."""
    return session.folder.path / "interventions" / folder_name(name)


def dose_all(session: Session, asked: Sequence[Asked], signs: Sequence[int]) -> list[Dosed]:
    """Fits or loads every intervention and finds its doses; what was done before is read."""
    warn_of_a_short_audit(session)
    found = []
    for each in asked:
        session.console.title(each.name)
        intervention = _fitted(session, each)
        start = None
        for sign in signs:
            dosed = _dose(session, each.name, intervention, sign, start)
            start = start or dosed.calibration.c_star
            warn_of_dose(session.console, dosed.label, intervention.dosing, dosed.calibration)
            found.append(dosed)
    return found


def prompted(session: Session, signs: Sequence[int]) -> list[Prompted]:
    """The persona prompts, each with its KL on the calibration prompts."""
    asked, _ = calibration_prompts(session)
    chat, recipe = session.model.chat, session.recipe
    found = []
    for (name, sign), system in personas(session.trait).items():
        if sign not in signs:
            continue
        folder, file = place(session, name), f"divergence{mark(sign)}.json"

        def compute(shown: Stage, system: str = system, file: str = file) -> tuple[PathDivergence, Files]:
            with session.accumulator.student():
                spent = prompt_divergence(
                    session.model,
                    [chat.ids(system, text) for text in asked],
                    [chat.ids(recipe.model.system, text) for text in asked],
                    recipe.calibration.tokens,
                )
            shown.found(f"p95 KL {spent.p95:.2f} nats, as it is: a prompt has no dose")
            return spent, {file: json_bytes(asdict(spent))}

        def read(path: Path = folder / file) -> PathDivergence:
            return PathDivergence(**read_json(path))

        session.console.title(f"{name} {mark(sign)}")
        step = f"divergence{mark(sign)}"
        spent = stage(session, folder, step, read, compute)
        found.append(Prompted(name, sign, system, spent, session.folder.seconds(folder)[step]))
    return found


def _fitted(session: Session, asked: Asked) -> Intervention:
    """The intervention itself, as a file in its folder."""
    folder = place(session, asked.name)
    file = folder / FILE

    def compute(shown: Stage) -> tuple[Intervention, Files]:
        if asked.path is None:
            found: SteeringVector | WeightDifference = _extracted(session, asked.name, shown)
        else:
            found = _loaded(session, asked.path)
            shown.found(f"read from {asked.path}")
        return found, {FILE: found.to_bytes()}

    def read() -> Intervention:
        if asked.path is not None and _loaded(session, asked.path).to_bytes() != file.read_bytes():
            raise UserError(f"{asked.path}: changed since this study read it; give run.name=... to start a new one")
        return load_intervention(file)

    return stage(session, folder, "extract", read, compute)


def _extracted(session: Session, name: str, shown: Stage) -> SteeringVector:
    steer = session.recipe.steer
    texts = contexts(steer.pairs)
    with session.accumulator.student():
        vector = extract(
            session.model,
            session.trait,
            texts,
            name,
            session.model.band(steer.band),
            shown.progress,
            method_settings(steer, name),
        )
    shown.found(f"{name} from {len(texts)} pairs, at {', '.join(map(str, vector.states))}")
    return vector


def _loaded(session: Session, path: Path) -> SteeringVector | WeightDifference:
    """A saved intervention, or the gate of a run's student; refused where it is not of this model."""
    found = adapter_gate(RunFolder(path)) if path.is_dir() else load_intervention(path)
    found.check_fits(session.model)
    return found


def _dose(session: Session, name: str, intervention: Intervention, sign: int, start: float | None) -> Dosed:
    folder, signed = place(session, name), Signed(intervention, sign)
    file = f"calibration{mark(sign)}.json"

    def compute(shown: Stage) -> tuple[Calibration, Files]:
        found = find_dose(session, signed, start, shown)
        files = {file: json_bytes(found.to_json())}
        if isinstance(intervention, SteeringVector):  # as heal export takes it
            files[f"vector{mark(sign)}.safetensors"] = intervention.with_c_star(sign * found.c_star).to_bytes()
        return found, files

    step = f"calibrate{mark(sign)}"
    calibration = stage(session, folder, step, lambda: Calibration.from_json(read_json(folder / file)), compute)
    took = session.folder.seconds(folder)
    return Dosed(name, sign, signed, calibration, took["extract"] + took[step])
