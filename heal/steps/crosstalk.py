"""Cross-talk: each of several traits' own vector on base, at its own dose, and what it does to every readout.

The coefficients of these doses weigh the traits in the vector that a round steers with. docs/method.md, Several traits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from heal.config import SteerConfig
from heal.dose.find import Prompts
from heal.evaluation.crosstalk import Crosstalk, OwnVector
from heal.evaluation.metrics import of_each_trait
from heal.evaluation.results import StageResult
from heal.progress import Progress
from heal.run.session import Session
from heal.run.step import Step
from heal.steps.baseline import Baseline
from heal.steps.calibrate import Calibrate, Dosed
from heal.steps.extract import Extract
from heal.steps.measure import Read


def measure_crosstalk(session: Session, baseline: Baseline, steer: SteerConfig) -> Mapping[str, float]:
    """The coefficient of each trait's vector in the joint one, by trait; none where the run trains one trait."""
    if not session.trait.parts:
        return {}
    recipe, model, student, run = session.recipe, session.model, session.accumulator, session.run
    prompts = Prompts.drawn(session.trait, recipe.calibration, recipe.run.seed)
    doses: dict[str, Dosed] = {}
    stages: dict[str, StageResult] = {}
    for part in session.trait.parts:
        session.console.title(f"trait {part.name}")
        at = session.folder.crosstalk / part.name
        vector = run(Extract(model, student, part, steer), at).vector
        dosed = run(Calibrate(model, student, vector, prompts, recipe.model.system, recipe.calibration, None), at)
        stage = baseline.examination.stage("steered", student.base, intervention=dosed.vector, coefficient=dosed.c_star)
        doses[part.name], stages[part.name] = dosed, run(Read(stage.subject), at)
    session.console.title("cross-talk")
    found = run(JudgeCrosstalk(baseline, doses, stages), session.folder.crosstalk)
    for line in found.lines():
        session.console.say(f"  {line}")
    session.tracker.table("crosstalk", found.rows())
    return found.coefficients


@dataclass(frozen=True)
class JudgeCrosstalk(Step[Crosstalk]):
    """Holds base under each trait's vector against base, by the readout of every trait.

    Attributes:
        doses, stages: by trait.
    """

    baseline: Baseline
    doses: Mapping[str, Dosed]
    stages: Mapping[str, StageResult]

    name = "crosstalk"
    load = staticmethod(Crosstalk.load)

    def compute(self, progress: Progress) -> Crosstalk:
        vectors = {}
        for trait, stage in self.stages.items():
            calibration = self.doses[trait].calibration
            shifts = {name: read.delta for name, read in of_each_trait(self.baseline.summary(stage)).items()}
            vectors[trait] = OwnVector(calibration.c_star, calibration.value, shifts)
        return Crosstalk(vectors)

    def finding(self, artifact: Crosstalk) -> str:
        return "shift of each trait's persona log-ratio over base under the vector of each, nats/token:"
