"""What a comparison knows of a run: every item of every signal, from its folder or from a file of such records."""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from heal.errors import UserError
from heal.evaluation.metrics import BaselineMetrics, RoundMetrics
from heal.evaluation.results import StageResult, summarise
from heal.evaluation.signal import Limits, Statistic, Validity, limits_of
from heal.evaluation.validity import valid_names
from heal.evaluation.verdict import worst_signal
from heal.recipe import flatten, from_mapping, to_mapping
from heal.records import jsonl_bytes, read_records
from heal.run.folder import RunFolder
from heal.yaml_text import Settings

BASE = "base"
_DIGITS = 6  # significant ones of a recorded item

# A signal's items by its name; None in a file, NaN once read, where one could not be scored.
Items = dict[str, list[float | None]]


@dataclass(frozen=True)
class Run:
    """One run's baseline and healed rounds, item by item.

    Attributes:
        name: of its folder.
        keys: the resolved recipe by dotted key, `recipe` and `trait` as bare names.
        prompts: the held-out prompts, as base answered them.
        signals: the statistic of each signal that base has.
        stages: each signal's items at base, prompted, and under raw steering (`steered at 0.5 c*`).
        healed: each signal's items after each finished round.
        margins: the coherence margin, by stage and by round (`"0"` is the first).
        verdicts: each round's verdict.
        validity: of each signal, for the run's model.
        drifts: root mean square of KL(student || base) on the student's own answers after each round, nats; None where
            that was not measured, empty in a record of an earlier version.
    """

    name: str
    keys: Settings
    prompts: list[str]
    signals: dict[str, Statistic]
    stages: dict[str, Items]
    healed: list[Items]
    margins: dict[str, float | None]
    verdicts: list[str]
    validity: dict[str, Validity]
    drifts: list[float | None] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """Finished rounds."""
        return len(self.healed)

    def key(self, name: str) -> Any:
        """A key of the recipe; one that is younger than the run has the value that the run behaved as."""
        return self.keys.get(name, younger().get(name))

    def has(self, signal: str, where: int | str) -> bool:
        """Whether a signal was measured there, and on base as well; see `values`."""
        return signal in self.signals and signal in self._items(where)

    def values(self, signal: str, where: int | str) -> list[float]:
        """A signal's items after a round (an index from 0) or at a stage of the baseline; NaN where not scored."""
        return [math.nan if value is None else value for value in self._items(where)[signal]]

    def margin(self, where: int | str) -> float:
        """The coherence margin there; NaN where its signal could not be scored."""
        margin = self.margins[str(where)]
        return math.nan if margin is None else margin

    def drift(self, index: int) -> float | None:
        """That after a round (an index from 0); None where it was not measured."""
        return self.drifts[index] if self.drifts else None

    def _items(self, where: int | str) -> Items:
        return self.healed[where] if isinstance(where, int) else self.stages[where]


@cache
def younger() -> Settings:
    """Every key of a recipe with the value that runs which lack it behaved as."""
    return flatten(to_mapping(from_mapping({}, "the defaults")), "the defaults")


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads run folders, and files of records (`.jsonl`) that a comparison wrote.

    Raises:
        UserError: no run, no finished round, or not such a file.
    """
    runs: list[Run] = []
    for path in paths:
        runs += read_records(Run, path) if path.suffix == ".jsonl" else [read_run(path)]
    return runs


def read_run(path: Path) -> Run:
    """Reads a run's finished rounds from its folder.

    Raises:
        UserError: no run, or no finished round.
    """
    folder = RunFolder(path)
    recipe = folder.recipe()
    keys = flatten(to_mapping(recipe), str(path))
    indices = folder.readable()
    if not indices:
        raise UserError(f"{path}: no round is finished yet, so there is nothing to compare")
    del keys["run.root"]  # where it lies is nobody's business
    keys["recipe"], keys["trait"] = Path(keys["recipe"]).stem, folder.started().trait.name
    base = StageResult.load(folder.baseline, "base")
    stages = {BASE: base, "prompted": StageResult.load(folder.baseline, "prompted")}
    for alpha in recipe.evaluation.doses:
        if (folder.doses / f"dose_{alpha:g}.json").is_file():
            stages[f"steered at {alpha:g} c*"] = StageResult.load(folder.doses, f"dose_{alpha:g}")
    metrics = [RoundMetrics.load(folder.round(index)) for index in indices]
    validity = BaselineMetrics.load(folder.baseline).validity
    limits, valid = limits_of(recipe.evaluation), valid_names(validity)
    margins: dict[str, float | None] = {name: _margin(stage, base, limits, valid) for name, stage in stages.items()}
    margins |= {str(index): finished.coherence.margin for index, finished in enumerate(metrics)}
    return Run(
        name=path.name,
        keys=keys,
        prompts=[answer.prompt for answer in base.answers],
        signals={signal.name: signal.statistic for signal in base.signals},
        stages={name: _items(stage) for name, stage in stages.items()},
        healed=[_items(StageResult.load(folder.round(index), "healed")) for index in indices],
        margins=margins,
        verdicts=[finished.verdict.label for finished in metrics],
        validity=validity,
        drifts=[_drift(finished) for finished in metrics],
    )


def records(runs: Sequence[Run]) -> bytes:
    """The runs as JSON lines, from which the comparison can be made again without their folders."""
    return jsonl_bytes(_rounded(asdict(run)) for run in runs)


def _drift(finished: RoundMetrics) -> float | None:
    answers = finished.drift.answers if finished.drift is not None else {}
    return answers["kl_rev"].rmse if "kl_rev" in answers else None


def _items(stage: StageResult) -> Items:
    return {signal.name: list(signal.values) for signal in stage.signals}


def _margin(stage: StageResult, base: StageResult, limits: Limits, valid: Collection[str]) -> float:
    """NaN where no signal of coherence is valid."""
    worst = worst_signal(summarise(stage, base, 1, 0), limits, valid)  # values alone matter here
    return math.nan if worst is None else worst.margin


def _rounded(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _rounded(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_rounded(value) for value in content]
    if isinstance(content, float):
        return None if math.isnan(content) else float(f"{content:.{_DIGITS}g}")
    return content
