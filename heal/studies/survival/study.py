"""Survival of dosed interventions as steps of a study: rollouts on disk, read again by the same command."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from heal.console import Stage
from heal.evaluation.validity import MIN_MASS
from heal.measuring import choose_format
from heal.randomness import shuffled
from heal.records import jsonl_bytes, read_jsonl
from heal.session import Session
from heal.stages import Files, stage, warn_of_multiples
from heal.studies.interventions.asked import folder_name
from heal.studies.interventions.doses import Dosed, mark, place
from heal.studies.survival.figures import draw
from heal.studies.survival.rollouts import Trajectory, coefficients_at, roll_out
from heal.studies.survival.table import csv_text, markdown, rows


def prepare(session: Session) -> str:
    """Chooses the probe's format on base; a doubt about the deaths it shows, in words (empty: they are valid)."""
    choose_format(session)
    if session.probe.mass >= MIN_MASS:
        return ""
    return (
        f"Not valid for this model: base itself puts {session.probe.mass:.2f} on the probe's answers in its best "
        f"format ({session.probe.format.name}), where {MIN_MASS:g} is required, so its deaths say little."
    )


def survive(
    session: Session, dosed: Dosed, prompts: int, tokens: int, forks: int, alphas: Sequence[float]
) -> list[Trajectory]:
    """Rollouts of one intervention on held-out prompts at every multiple of its dose, with signed coefficients."""
    warn_of_multiples(session.console, dosed.label, dosed.intervention.dosing)
    held_out = shuffled(list(session.trait.heldout_prompts), "heldout")[:prompts]
    folder, listed = place(session, dosed.name), ",".join(f"{alpha:g}" for alpha in alphas)
    name = f"rollouts{mark(dosed.sign)} prompts={len(held_out)} tokens={tokens} forks={forks}"
    # Each setting has a file of its own. A list of multiples may be too long for a file's name.
    file = f"{name.replace(' ', '_')}_alphas={hashlib.sha256(listed.encode()).hexdigest()[:8]}.jsonl"

    def compute(shown: Stage) -> tuple[list[Trajectory], Files]:
        with session.accumulator.base():
            trajectories = roll_out(
                session.model,
                dosed.intervention,
                coefficients_at(dosed.coefficient(), alphas, dosed.intervention.dosing.largest),
                [session.model.chat.ids(session.recipe.model.system, text) for text in held_out],
                tokens,
                forks,
                session.probe.format,
                progress=shown.progress,
            )
        trajectories = [
            replace(trajectory, coefficient=dosed.sign * trajectory.coefficient if trajectory.alpha else 0.0)
            for trajectory in trajectories
        ]
        dead = ", ".join(
            f"{row.alpha:g}: {row.deaths} of {row.n}" for row in rows(trajectories, dosed.calibration.target)
        )
        shown.found(f"dead by multiple of the dose {dead}")
        return trajectories, {file: jsonl_bytes([trajectory.to_json() for trajectory in trajectories])}

    def read() -> list[Trajectory]:
        return [Trajectory.from_json(content) for content in read_jsonl(folder / file)]

    return stage(session, folder, f"{name} alphas={listed}", read, compute)


def results(dosed: Dosed, trajectories: Sequence[Trajectory], doubt: str) -> dict[str, bytes]:
    """The files of one intervention: table, CSV and figures, by name."""
    target = dosed.calibration.target
    table = rows(trajectories, target)
    text = f"# {dosed.label}\n\n{markdown(table, target)}" + (f"\n{doubt}\n" if doubt else "")
    files = {"survival.md": text.encode(), "survival.csv": csv_text(table).encode()}
    return files | {f"{name}.png": image for name, image in draw(trajectories, target).items()}


def output(session: Session, dosed: Dosed) -> Path:
    """The folder of an intervention's survival files."""
    return session.folder.path / "survival" / f"{folder_name(dosed.name)}{mark(dosed.sign)}"
