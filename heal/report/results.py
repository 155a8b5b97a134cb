"""What the report is made from: a run's finished rounds, read from its folder alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heal.config import Recipe
from heal.dose.calibration import Calibration
from heal.errors import UserError
from heal.evaluation.asking.way import Asking
from heal.evaluation.crosstalk import FILE as CROSSTALK
from heal.evaluation.crosstalk import Crosstalk
from heal.evaluation.harness import Harness
from heal.evaluation.metrics import METRICS, BaselineMetrics, RoundMetrics, Summary
from heal.evaluation.results import OUTPUTS
from heal.evaluation.signal import Validity
from heal.evaluation.validity import valid_names
from heal.generation.collect import Collection, Completion
from heal.healing.log import StepLog, read_log
from heal.places.place import FILE as PLACE
from heal.places.place import Placed
from heal.records import as_record, read_json, read_jsonl, read_record
from heal.run.best import Best, read_best
from heal.run.facts import Facts
from heal.run.folder import RunFolder


@dataclass(frozen=True)
class Answer:
    """A greedy answer at a stage, with the signals that have one value an answer."""

    stage: str
    prompt: str
    text: str
    ended: bool
    signals: dict[str, float]


@dataclass(frozen=True)
class ProbeName:
    """What the format of the probe is called."""

    name: str


@dataclass(frozen=True)
class ProbeRecord:
    """The format that the probe was put in, and base's mass on the answers in each that was tried."""

    format: ProbeName
    masses: dict[str, float]

    @property
    def mass(self) -> float:
        return self.masses[self.format.name]


@dataclass(frozen=True)
class Round:
    """One finished round.

    Attributes:
        metrics: metrics.json.
        calibration: every evaluation of the dose, and the audit.
        collection: all that were sampled, kept or not.
        training: every optimiser step and validation, in order.
        answers: by stage (base, steered, healed), in the order of the prompts.
        seconds: wall time by step of the round.
    """

    metrics: RoundMetrics
    calibration: Calibration
    collection: Collection
    training: tuple[StepLog, ...]
    answers: dict[str, list[Answer]]
    seconds: dict[str, float]

    @property
    def number(self) -> int:
        """From 1."""
        return self.metrics.round

    @property
    def completions(self) -> tuple[Completion, ...]:
        return self.collection.rows

    @property
    def steered(self) -> Summary | None:
        """None where the stage was not measured."""
        return self.metrics.steered

    @property
    def healed(self) -> Summary:
        return self.metrics.healed


@dataclass(frozen=True)
class Results:
    """A run as the report shows it.

    Attributes:
        recipe: the resolved recipe; `recipe_text` is its YAML as it lies in the folder.
        facts: what the recipe leaves open.
        base, prompted, opposite: the signals of the stages that are measured once.
        doses: the signals of base under the first vector, by dose, where they were measured.
        crosstalk: of the traits on base; None where the run trains one.
        placed: the places at which steering was tried; None where the recipe says where.
        validity: of every signal, for this model.
        asking: how each forced choice was put to the model; empty in a run that tried no ways.
        probe: the format of the probe.
        prompted_answers: in the order of the prompts.
        baseline_seconds: wall time of the baseline's steps.
        rounds: the finished rounds, at least one.
        best: which of them to use; None where none holds.
        path: of the run, as commands name it.
        harness: what lm-eval measured after each round that it was asked for, by the round's number.
    """

    recipe: Recipe
    recipe_text: str
    facts: Facts
    base: Summary
    prompted: Summary
    opposite: Summary
    doses: dict[float, Summary]
    crosstalk: Crosstalk | None
    placed: Placed | None
    validity: dict[str, Validity]
    asking: dict[str, Asking]
    probe: ProbeRecord
    prompted_answers: list[Answer]
    baseline_seconds: dict[str, float]
    rounds: tuple[Round, ...]
    best: Best | None
    path: Path
    harness: dict[int, Harness]

    @property
    def shown(self) -> Round:
        """The round that the page speaks of: the best one, or the last where none holds."""
        return self.rounds[self.best.choice.index] if self.best else self.last

    @property
    def last(self) -> Round:
        return self.rounds[-1]

    @property
    def valid(self) -> frozenset[str]:
        """The signals that are valid for this model."""
        return valid_names(self.validity)


def read_results(folder: RunFolder) -> Results:
    """Reads every finished round of a run.

    Raises:
        UserError: the folder is no run, no round of it is finished, or a file is not what heal writes.
    """
    recipe = folder.recipe()
    indices = folder.readable()
    if not indices:
        raise UserError(f"{folder.path}: no round is finished yet, so there is nothing to report")
    baseline = BaselineMetrics.load(folder.baseline)
    return Results(
        recipe=recipe,
        recipe_text=(folder.path / "recipe.yaml").read_text(encoding="utf-8"),
        facts=folder.started(),
        base=baseline.base,
        prompted=baseline.prompted,
        opposite=baseline.opposite,
        doses=_read_doses(folder, recipe),
        crosstalk=Crosstalk.load(folder.crosstalk) if (folder.crosstalk / CROSSTALK).is_file() else None,
        placed=Placed.load(folder.place) if (folder.place / PLACE).is_file() else None,
        validity=baseline.validity,
        asking=baseline.asking,
        probe=read_record(ProbeRecord, folder.baseline / "probe.json"),
        prompted_answers=_read_answers(folder.baseline / OUTPUTS).get("prompted", []),
        baseline_seconds=folder.seconds(folder.baseline),
        rounds=tuple(_read_round(folder, index) for index in indices),
        best=read_best(folder, indices),
        path=folder.path,
        harness={index + 1: Harness.load(folder.path, index + 1) for index in indices},
    )


def _read_doses(folder: RunFolder, recipe: Recipe) -> dict[float, Summary]:
    path = folder.doses / METRICS
    if not path.is_file():
        return {}
    stages = as_record(dict[str, Summary], read_json(path), path)
    by_dose = {alpha: stages.get(f"dose_{alpha:g}") for alpha in recipe.evaluation.doses}
    return {alpha: summary for alpha, summary in by_dose.items() if summary is not None}


def _read_round(folder: RunFolder, index: int) -> Round:
    path = folder.round(index)
    return Round(
        metrics=RoundMetrics.load(path),
        calibration=read_record(Calibration, path / "calibration.json"),
        collection=Collection.load(path),
        training=tuple(read_log(path / "training.jsonl")),
        answers=_read_answers(path / OUTPUTS),
        seconds=folder.seconds(path),
    )


def _read_answers(path: Path) -> dict[str, list[Answer]]:
    """The answers by stage; what is neither text nor about the answer is a signal."""
    stages: dict[str, list[Answer]] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        answer = as_record(Answer, _with_signals(row), f"{path}, line {number}")
        stages.setdefault(answer.stage, []).append(answer)
    return stages


def _with_signals(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    about = ("stage", "prompt", "text", "ended")
    return {name: row[name] for name in about if name in row} | {
        "signals": {name: value for name, value in row.items() if name not in about}
    }
