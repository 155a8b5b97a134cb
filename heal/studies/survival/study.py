"""Survival of dosed interventions as steps of a study: rollouts on disk, read again by the same command."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from heal.dose.find import odd_multiples
from heal.evaluation.probe import Probe
from heal.evaluation.signal import MIN_MASS
from heal.progress import Progress
from heal.randomness import shuffled
from heal.records import read_records, records_bytes
from heal.run.files import Files
from heal.run.session import Session
from heal.run.step import Step
from heal.steps.baseline import ChooseProbe
from heal.studies.interventions.doses import Dosed, mark, place
from heal.studies.interventions.request import folder_name
from heal.studies.survival.figures import draw
from heal.studies.survival.rollouts import Trajectory, coefficients_at, roll_out
from heal.studies.survival.table import csv_text, markdown, rows


@dataclass(frozen=True)
class Setting:
    """How rollouts are made: number of held-out prompts, token budget, number of forks, multiples of the dose."""

    prompts: int
    tokens: int
    forks: int
    alphas: Sequence[float]


def prepare(session: Session) -> tuple[Probe, str]:
    """The probe's format, chosen on base, and a doubt about the deaths it shows, in words (empty: they are valid)."""
    choose = ChooseProbe(session.model, session.accumulator.base, session.recipe.model.system)
    probe = session.run(choose, session.folder.baseline).probe
    if probe.mass >= MIN_MASS:
        return probe, ""
    return probe, (
        f"Not valid for this model: base itself puts {probe.mass:.2f} on the probe's answers in its best format "
        f"({probe.format.name}), where {MIN_MASS:g} is required, so its deaths say little."
    )


def survive(session: Session, dosed: Dosed, probe: Probe, setting: Setting) -> tuple[Trajectory, ...]:
    """Rollouts of one intervention on held-out prompts, at every multiple of its dose, with signed coefficients."""
    session.console.warn(*odd_multiples(dosed.label, dosed.intervention.dosing))
    prompts = shuffled(list(session.trait.heldout_prompts), "heldout")[: setting.prompts]
    step = RollOut(session, dosed, probe, setting, tuple(prompts))
    return session.run(step, place(session, dosed.name)).trajectories


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of one setting, in a file of their own."""

    file: str
    trajectories: tuple[Trajectory, ...]

    def files(self) -> Files:
        return {self.file: records_bytes(self.trajectories)}


@dataclass(frozen=True)
class RollOut(Step[Rollouts]):
    """Rolls out held-out prompts under one intervention at multiples of its dose."""

    session: Session
    dosed: Dosed
    probe: Probe
    setting: Setting
    prompts: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self._shape} alphas={self._alphas}"

    @property
    def file(self) -> str:
        # A list of multiples may be too long for a file's name.
        digest = hashlib.sha256(self._alphas.encode()).hexdigest()[:8]
        return f"{self._shape.replace(' ', '_')}_alphas={digest}.jsonl"

    @property
    def _shape(self) -> str:
        sign, setting = mark(self.dosed.sign), self.setting
        return f"rollouts{sign} prompts={len(self.prompts)} tokens={setting.tokens} forks={setting.forks}"

    @property
    def _alphas(self) -> str:
        return ",".join(f"{alpha:g}" for alpha in self.setting.alphas)

    def compute(self, progress: Progress) -> Rollouts:
        session, dosed, setting = self.session, self.dosed, self.setting
        with session.accumulator.base():
            trajectories = roll_out(
                session.model,
                dosed.intervention,
                coefficients_at(dosed.coefficient(), setting.alphas, dosed.intervention.dosing.largest),
                [session.model.chat.ids(session.recipe.model.system, text) for text in self.prompts],
                tokens=setting.tokens,
                forks=setting.forks,
                probe_format=self.probe.format,
                progress=progress,
            )
        signed = [replace(one, coefficient=dosed.sign * one.coefficient if one.alpha else 0.0) for one in trajectories]
        return Rollouts(self.file, tuple(signed))

    def load(self, folder: Path) -> Rollouts:
        return Rollouts(self.file, tuple(read_records(Trajectory, folder / self.file)))

    def finding(self, artifact: Rollouts) -> str:
        table = rows(artifact.trajectories, self.dosed.calibration.target)
        return "dead by multiple of the dose " + ", ".join(f"{row.alpha:g}: {row.deaths} of {row.n}" for row in table)


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
