"""The loop, to be read beside the diagram of a round in docs/method.md:

base -> extract -> calibrate -> generate and filter -> heal -> fold -> measure -> drift -> judge -> next round
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heal.config import SteerConfig
from heal.dose.find import Prompts
from heal.evaluation.choice import why_stop
from heal.evaluation.metrics import RoundMetrics
from heal.outcome import show_round, track_base, track_round
from heal.run.manifest import JUDGE
from heal.run.session import Session
from heal.run.student import lora_seed
from heal.steering.vector import SteeringVector
from heal.steps.baseline import Baseline, measure_baseline, measure_doses
from heal.steps.calibrate import Calibrate
from heal.steps.crosstalk import measure_crosstalk
from heal.steps.drift import Drift
from heal.steps.extract import Extract
from heal.steps.generate import Generate
from heal.steps.heal import ADAPTER, Heal
from heal.steps.judge import Judge
from heal.steps.merge import Merge
from heal.steps.place import steer_settings
from heal.steps.pointless import stop_unless_readable, stop_unless_steerable


@dataclass(frozen=True)
class Round:
    """What a finished round hands on: its vector with its dose, and what it came to."""

    vector: SteeringVector
    metrics: RoundMetrics


def run_loop(session: Session) -> list[RoundMetrics]:
    """Every round of the recipe, continuing after the last finished step; the metrics of each round."""
    settings, rounds = session.recipe.run, list[Round]()
    session.console.title("baseline")
    measured_before = session.folder.finished(session.folder.baseline, JUDGE)
    baseline = measure_baseline(session)
    stop_unless_readable(session, baseline)
    track_base(session, baseline, new=not measured_before)
    steer = steer_settings(session, baseline)
    coefficients = measure_crosstalk(session, baseline, steer)
    for index in range(settings.rounds):
        done_before = session.folder.finished(session.folder.round(index), JUDGE)
        session.console.title(f"round {index + 1} of {settings.rounds}{' (done before)' if done_before else ''}")
        rounds.append(run_round(session, index, baseline, steer, coefficients, rounds))
        metrics = [finished.metrics for finished in rounds]
        show_round(session, metrics[-1])
        track_round(session, metrics[-1], new=not done_before)
        if reason := why_stop(metrics, settings):
            session.console.say(f"stopping   {reason}")
            break
    return [finished.metrics for finished in rounds]


def run_round(
    session: Session,
    index: int,
    baseline: Baseline,
    steer: SteerConfig,
    coefficients: Mapping[str, float],
    earlier: Sequence[Round],
) -> Round:
    """One round: the student steers itself, writes, keeps what is whole, heals on it, and folds."""
    recipe, trait, model, student = session.recipe, session.trait, session.model, session.accumulator
    run, at, measured = session.run, session.folder.round(index), baseline.examination
    student.start_round(lora_seed(recipe, index))

    vector = run(Extract(model, student, trait, steer, recipe.data.vector, coefficients), at).vector

    prompts = Prompts.drawn(trait, recipe.calibration, recipe.run.seed)
    start = earlier[-1].vector.c_star if earlier else None
    dosed = run(Calibrate(model, student, vector, prompts, recipe.model.system, recipe.calibration, start), at)
    if not earlier:
        measure_doses(session, baseline, dosed)

    collection = run(Generate(model, student, trait, dosed.vector, recipe, index), at)

    steered = None
    if recipe.evaluation.steered:
        stage = measured.stage("steered", student.previous, intervention=dosed.vector, coefficient=dosed.c_star)
        steered = run(stage, at)
        if not earlier:
            stop_unless_steerable(session, baseline, steered)

    strength = earlier[-1].metrics.training.strength if earlier else None
    healed = run(Heal(model, student, collection.kept, recipe, index, at, session.log_of(index + 1), strength), at)
    student.load_current(at / ADAPTER)
    student.fold()
    if student.rounds_merged:
        student.merge(run(Merge(model, student, collection.kept, recipe.compute.merge_limit), at).taken)

    after = run(measured.stage("healed", student.student), at)
    drift = None
    # A round that an earlier version judged has none.
    if session.folder.finished(at, Drift.name) or not session.folder.finished(at, JUDGE):
        drift = run(Drift(model, student, collection.kept, after.answers), at).figures
    first = earlier[0].vector if earlier else vector
    judged = run(
        Judge(
            number=index + 1,
            baseline=baseline,
            dosed=dosed,
            collection=collection,
            training=healed.figures,
            cosine_to_first=vector.cosine(first),
            steered=steered,
            healed=after,
            drift=drift,
        ),
        at,
    )
    return Round(dosed.vector, judged.metrics)
