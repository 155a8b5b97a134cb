"""The loop, to be read beside the diagram of a round:

base -> extract -> calibrate -> generate and filter -> heal -> fold -> evaluate -> next round
"""

from dataclasses import dataclass
from typing import Any

from heal.evaluation.choice import why_stop
from heal.evaluation.metrics import RoundMetrics
from heal.evaluation.results import StageResult, output_rows
from heal.measuring import Baseline, baseline, measure_doses, measure_stage, round_metrics
from heal.outcome import show_round, track_round
from heal.records import as_record, json_bytes, jsonl_bytes, read_json
from heal.run.folder import STAGES
from heal.session import Session
from heal.stages import (
    calibrate_dose,
    extract_vector,
    generate_and_filter,
    heal_student,
    start_current,
)
from heal.steering.vector import SteeringVector


@dataclass
class Carried:
    """What one round hands to the next: the dose to start from, and round 0's direction."""

    c_star: float | None = None
    first: SteeringVector | None = None


def run_loop(session: Session) -> list[dict[str, Any]]:
    """Every round of the recipe, continuing after the last finished stage; the metrics of each round."""
    session.console.title("baseline")
    against = baseline(session)
    carried, metrics = Carried(), []
    for r in range(session.recipe.run.rounds):
        done_before = session.folder.finished(session.folder.round(r), STAGES[-1])
        session.console.title(f"round {r + 1} of {session.recipe.run.rounds}{' (done before)' if done_before else ''}")
        metrics.append(run_round(session, r, against, carried))
        show_round(session, metrics[-1])
        track_round(session, metrics[-1], new=not done_before)
        run = session.recipe.run
        if reason := why_stop(
            [as_record(RoundMetrics, entry, "metrics.json") for entry in metrics],
            run.stop_on_plateau,
            run.stop_when_incoherent,
        ):
            session.console.say(f"stopping   {reason}")
            break
    return metrics


def run_round(session: Session, r: int, against: Baseline, carried: Carried) -> dict[str, Any]:
    """One round: the student steers itself, writes, keeps what is whole, heals on it, and folds."""
    folder, accumulator = session.folder.round(r), session.accumulator
    start_current(session, r)

    vector = extract_vector(session, r)
    dose = calibrate_dose(session, r, vector, warm_start=carried.c_star)
    if r == 0:
        measure_doses(session, vector, dose.c_star, against)
    found = generate_and_filter(session, r, vector, dose.c_star)
    steered = None
    if session.recipe.evaluation.steered:
        steered = measure_stage(session, folder, "steered", accumulator.previous, vector=vector, c=dose.c_star)
    log = heal_student(session, r, found.kept)
    accumulator.fold()

    carried.c_star, carried.first = dose.c_star, carried.first or vector
    cosine = vector.cosine(carried.first)

    def results(healed: StageResult) -> dict[str, bytes]:
        metrics = round_metrics(session, r, dose, found, log, cosine, steered, healed, against)
        rows = [row for stage in (against.base, steered, healed) if stage is not None for row in output_rows(stage)]
        return {"metrics.json": json_bytes(metrics), "outputs.jsonl": jsonl_bytes(rows)}

    measure_stage(session, folder, "healed", accumulator.student, extra=results, stage_name=STAGES[-1])
    return read_json(folder / "metrics.json")
