"""Extract: the persona contrast of the current student, as a steering vector."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from heal.accumulator import Accumulator
from heal.config import SteerConfig
from heal.models.language_model import LanguageModel
from heal.progress import Progress
from heal.run.files import Files
from heal.run.step import Step
from heal.steering.extract import extract_as
from heal.steering.foreign import read_vector
from heal.steering.joint import extract_joint
from heal.steering.vector import SteeringVector
from heal.trait import Trait

FILE = "vector.safetensors"


@dataclass(frozen=True)
class Extracted:
    """The vector, whose dose is not known yet."""

    vector: SteeringVector

    def files(self) -> Files:
        return {FILE: self.vector.to_bytes()}

    @staticmethod
    def load(folder: Path) -> "Extracted":
        """UserError where the file is not a vector."""
        return Extracted(SteeringVector.load(folder / FILE))


@dataclass(frozen=True)
class Extract(Step[Extracted]):
    """Reads the student's activations under both personas, and fits `steer.method` to them.

    Attributes:
        own: a file with a vector of the user's own, which is taken instead.
        coefficients: of each of several traits, by which their vectors are added up.
    """

    language_model: LanguageModel
    accumulator: Accumulator
    trait: Trait
    settings: SteerConfig
    own: str = ""
    coefficients: Mapping[str, float] = field(default_factory=dict)

    name = "extract"
    load = staticmethod(Extracted.load)

    def compute(self, progress: Progress) -> Extracted:
        if self.own:
            return Extracted(read_vector(self.own, self.language_model, self.trait.name))
        with self.accumulator.student():
            if self.trait.parts:
                joint = extract_joint(self.settings, self.language_model, self.trait, self.coefficients, progress)
                return Extracted(joint)
            return Extracted(extract_as(self.settings, self.language_model, self.trait, progress))

    def finding(self, artifact: Extracted) -> str:
        norms = ", ".join(f"{layer}: {float(v_D.norm()):.2f}" for layer, v_D in artifact.vector.directions.items())
        if self.own:
            return f"{artifact.vector.method} of your own, {self.own}; norm by block {norms}"
        each = f" of each of {len(self.trait.parts)} traits, added up at equal KL" if self.trait.parts else ""
        return f"{self.settings.method} from {self.settings.pairs} pairs{each}; norm by block {norms}"
