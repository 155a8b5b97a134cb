"""What a comparison knows of a run: every item of every signal, from its folder or from a file of such records."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heal.errors import UserError
from heal.evaluation.metrics import Summary
from heal.evaluation.results import StageResult, summarise
from heal.evaluation.signal import Limits, Statistic, limits_of
from heal.evaluation.validity import Validity, valid_names
from heal.evaluation.verdict import coherence
from heal.recipe import flatten, to_mapping
from heal.records import as_record, read_json, read_jsonl, read_record
from heal.run.folder import RunFolder

BASE = "base"
_DIGITS = 6  # significant ones of a recorded item

Items = dict[str, list[float]]


@dataclass(frozen=True)
class Run:
    """One run's baseline and healed rounds, item by item.

    Attributes:
        name: of its folder.
        keys: the resolved recipe by dotted key, `recipe` and `trait` as bare names.
        prompts: the held-out prompts, as base answered them.
        signals: each signal's statistic.
        stages: each signal's items at base, prompted, and under raw steering (`steered at 0.5 c*`).
        healed: each signal's items after each finished round.
        margins: the least coherence margin, by stage and by round (`"0"` is the first).
        verdicts: each round's verdict.
        validity: of each signal, for the run's model.
    """

    name: str
    keys: dict[str, Any]
    prompts: list[str]
    signals: dict[str, Statistic]
    stages: dict[str, Items]
    healed: list[Items]
    margins: dict[str, float]
    verdicts: list[str]
    validity: dict[str, Validity]

    @property
    def rounds(self) -> int:
        """Finished rounds."""
        return len(self.healed)

    def values(self, signal: str, where: int | str) -> list[float]:
        """A signal's items after a round (a number from 0) or at a stage of the baseline."""
        return (self.healed[where] if isinstance(where, int) else self.stages[where])[signal]

    def margin(self, where: int | str) -> float:
        """The least coherence margin there."""
        return self.margins[str(where)]

    def to_json(self) -> dict[str, Any]:
        """A record of one line; items rounded to _DIGITS digits, NaN as null."""
        content: dict[str, Any] = _rounded(asdict(self))
        return content

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Run":
        """What `to_json` made."""
        parts = {
            "validity": {name: Validity(**judged) for name, judged in content["validity"].items()},
            "stages": {name: _restored(stage) for name, stage in content["stages"].items()},
            "healed": [_restored(stage) for stage in content["healed"]],
        }
        return Run(**(content | parts))


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads run folders, and files of records (`.jsonl`) that a comparison wrote.

    Raises:
        UserError: no run, no finished round, or not such a file.
    """
    found = []
    for path in paths:
        if path.suffix != ".jsonl":
            found.append(read_run(path))
            continue
        try:
            found += [Run.from_json(content) for content in read_jsonl(path)]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not a comparison's file of runs ({error!r})") from error
    return found


def read_run(path: Path) -> Run:
    """Reads a run's finished rounds from its folder.

    Raises:
        UserError: no run, or no finished round.
    """
    folder = RunFolder(path)
    recipe = folder.recipe()
    keys = flatten(to_mapping(recipe), str(path))
    numbers = folder.rounds()
    if not numbers:
        raise UserError(f"{path}: no round is finished yet, so there is nothing to compare")
    del keys["run.root"]  # where it lies is nobody's business
    keys["recipe"], keys["trait"] = Path(keys["recipe"]).stem, folder.facts()["trait"]["name"]
    try:
        base = _stage(folder.baseline / "base.json")
        stages = {BASE: base, "prompted": _stage(folder.baseline / "prompted.json")}
        for alpha in recipe.evaluation.doses:
            stages[f"steered at {alpha:g} c*"] = _stage(folder.doses / f"dose_{alpha:g}.json")
        healed = [_stage(folder.round(index) / "healed.json") for index in numbers]
        metrics = [read_json(folder.round(index) / "metrics.json") for index in numbers]
        baseline = folder.baseline / "metrics.json"
        judged = as_record(dict[str, Validity], read_json(baseline)["validity"], baseline)
        valid, limits = valid_names(judged), limits_of(recipe.evaluation)
        margins = {name: _margin(_summary(stage, base), limits, valid) for name, stage in stages.items()}
        margins |= {str(index): entry["coherence"]["margin"] for index, entry in enumerate(metrics)}
        return Run(
            path.name,
            keys,
            [answer.prompt for answer in base.answers],
            {signal.name: signal.statistic for signal in base.signals},
            {name: _items(stage) for name, stage in stages.items()},
            [_items(stage) for stage in healed],
            margins,
            [entry["verdict"]["label"] for entry in metrics],
            judged,
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not what this version of heal writes ({error!r})") from error


def records(runs: Sequence[Run]) -> bytes:
    """The runs as JSON lines, from which the comparison can be made again without their folders."""
    return "".join(json.dumps(run.to_json()) + "\n" for run in runs).encode()


def _stage(path: Path) -> StageResult:
    return read_record(StageResult, path)


def _items(stage: StageResult) -> Items:
    return {signal.name: list(signal.values) for signal in stage.signals}


def _summary(stage: StageResult, base: StageResult) -> Summary:
    return summarise(stage, base, 1, 0)  # values alone matter here


def _margin(summary: Summary, limits: Limits, valid: frozenset[str]) -> float:
    return coherence(summary, limits, valid).margin


def _rounded(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _rounded(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_rounded(value) for value in content]
    if isinstance(content, float):
        return None if math.isnan(content) else float(f"{content:.{_DIGITS}g}")
    return content


def _restored(items: dict[str, list[float | None]]) -> Items:
    return {name: [math.nan if value is None else value for value in values] for name, values in items.items()}
