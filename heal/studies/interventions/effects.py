"""What every intervention does at its dose, on the same items: measured on base, one stage an intervention and sign."""

from collections.abc import Sequence
from dataclasses import dataclass

from heal.evaluation.results import StageResult
from heal.run.session import Session
from heal.steps.baseline import Baseline, measure_baseline
from heal.steps.pointless import stop_unless_readable
from heal.studies.interventions.doses import Dosed, Prompted, mark, place


@dataclass(frozen=True)
class MeasuredArm:
    """One intervention, turned one way, and what was measured under it.

    Attributes:
        arm: the intervention at its dose, or a prompt.
        result: the signals, item by item.
        seconds: that measuring took.
    """

    arm: Dosed | Prompted
    result: StageResult
    seconds: float


def measure_all(
    session: Session, dosed: Sequence[Dosed], prompts: Sequence[Prompted]
) -> tuple[Baseline, list[MeasuredArm]]:
    """Base with what is valid on it, then every arm; what was measured before is read."""
    session.console.title("base")
    against = measure_baseline(session)
    stop_unless_readable(session, against, stops=False)
    examined = against.examination
    measured = []
    arms: list[Dosed | Prompted] = [*dosed, *prompts]
    for arm in arms:
        session.console.title(arm.label)
        folder, step = place(session, arm.name), f"measured{mark(arm.sign)}"
        off = session.accumulator.base
        if isinstance(arm, Dosed):
            stage = examined.stage(step, off, intervention=arm.intervention, coefficient=arm.coefficient())
        else:
            stage = examined.stage(step, off, persona=arm.system)
        result = session.run(stage, folder)
        measured.append(MeasuredArm(arm, result, session.folder.seconds(folder)[step]))
    return against, measured
