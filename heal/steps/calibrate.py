"""Calibrate: the coefficient at which this round's vector spends the KL that the recipe asks for."""

from dataclasses import dataclass
from pathlib import Path

from heal.accumulator import Accumulator
from heal.config import CalibrationConfig
from heal.dose.calibrate import Calibration, Goal
from heal.dose.find import Prompts, find_dose, finding, odd_multiples, off_target, short_audit
from heal.models.language_model import LanguageModel
from heal.progress import Progress
from heal.records import read_record, record_bytes
from heal.run.files import Files
from heal.run.step import Step
from heal.steering.vector import SteeringVector
from heal.steps import extract

FILE = "calibration.json"


@dataclass(frozen=True)
class Dosed:
    """The vector with its c_star, and the search that found it."""

    vector: SteeringVector
    calibration: Calibration

    @property
    def c_star(self) -> float:
        return self.calibration.c_star

    def files(self) -> Files:
        return {extract.FILE: self.vector.to_bytes(), FILE: record_bytes(self.calibration)}

    @staticmethod
    def load(folder: Path) -> "Dosed":
        """UserError where a file is not what `files` wrote."""
        calibration = read_record(Calibration, folder / FILE)
        return Dosed(SteeringVector.load(folder / extract.FILE), calibration)


@dataclass(frozen=True)
class Calibrate(Step[Dosed]):
    """Searches from the last round's `c_star` on (None: cold), on the student or against the base."""

    language_model: LanguageModel
    accumulator: Accumulator
    vector: SteeringVector
    prompts: Prompts
    system: str
    settings: CalibrationConfig
    start: float | None

    name = "calibrate"
    load = staticmethod(Dosed.load)

    def compute(self, progress: Progress) -> Dosed:
        with self.accumulator.student():
            calibration = find_dose(
                self.language_model,
                self.vector,
                self.prompts,
                system=self.system,
                tokens=self.settings.tokens,
                goal=Goal.of(self.settings),
                base=self.accumulator.base,
                start=self.start,
                progress=progress,
            )
        return Dosed(self.vector.with_c_star(calibration.c_star), calibration)

    def finding(self, artifact: Dosed) -> str:
        return finding(artifact.calibration, self.prompts)

    def warnings(self, artifact: Dosed) -> list[str]:
        dosing, name = self.vector.dosing, self.vector.method
        return [
            *(short_audit(self.prompts, self.settings) if self.start is None else []),
            *off_target(f"the dose of {name}", dosing, artifact.calibration),
            *odd_multiples(name, dosing),
        ]
