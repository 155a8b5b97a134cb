"""What the report is made from: a run's finished rounds, read from its folder alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heal.config import Recipe
from heal.errors import UserError
from heal.evaluation.stats import Estimate
from heal.evaluation.validity import Validity
from heal.generation.collect import Row
from heal.records import as_record, read_json, read_jsonl
from heal.run.folder import RunFolder

Json = dict[str, Any]

NEEDED = (
    "persona_log_ratio",
    "p_ans_any",
    "tail_perplexity",
    "repetition_share",
    "scaffold_nats",
    "neutral_kl_p95",
    "accuracy",
)
CHANCE = 0.25  # accuracy of guessing at a general question's four options


@dataclass(frozen=True)
class Summary:
    """One stage's signals, each with its interval and role, and their paired differences to base."""

    values: dict[str, Estimate]
    deltas: dict[str, Estimate]
    roles: dict[str, str]

    @staticmethod
    def from_json(content: Json) -> "Summary":
        """KeyError when a signal that the report rests on is missing."""
        missing = [name for name in NEEDED if name not in content]
        if missing:
            raise KeyError(*missing)
        fields = ("value", "low", "high", "n")
        return Summary(
            {name: Estimate(*(entry[field] for field in fields)) for name, entry in content.items()},
            {name: Estimate(*(entry["delta"][field] for field in fields)) for name, entry in content.items()},
            {name: entry["role"] for name, entry in content.items()},
        )


@dataclass(frozen=True)
class Round:
    """One finished round.

    Attributes:
        number: of the round, from 1.
        metrics: metrics.json (dose, generation, training, cosine, coh_cost, verdict).
        steered, healed: the signals of the two stages; steered is None where it was not measured.
        calibration: calibration.json (every evaluation of the dose, and the audit).
        rows: every completion that was made.
        training: the log of every optimiser step and validation.
        outputs: answers by stage (base, steered, healed), in the order of the prompts.
        seconds: wall time by stage of the round.
    """

    number: int
    metrics: Json
    steered: Summary | None
    healed: Summary
    calibration: Json
    rows: tuple[Row, ...]
    training: list[Json]
    outputs: dict[str, list[Json]]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Results:
    """A run as the report shows it.

    Attributes:
        recipe: the resolved recipe; `recipe_text` is its YAML as it lies in the folder.
        facts: what the recipe leaves open (dtype, the trait's content).
        base, prompted, opposite: the signals of the stages that are measured once.
        doses: the signals of base under the first vector, by dose, where they were measured.
        validity: of every signal, for this model.
        probe: the format of the probe and base's mass in each.
        prompted_outputs: the prompted stage's answers, in the order of the prompts.
        baseline_seconds: wall time of the baseline's stages.
        rounds: the finished rounds, at least one.
    """

    recipe: Recipe
    recipe_text: str
    facts: Json
    base: Summary
    prompted: Summary
    opposite: Summary
    doses: dict[float, Summary]
    validity: dict[str, Validity]
    probe: Json
    prompted_outputs: list[Json]
    baseline_seconds: dict[str, float]
    rounds: tuple[Round, ...]


def read_results(folder: RunFolder) -> Results:
    """Reads every finished round of a run.

    Raises:
        UserError: the folder is no run, no round of it is finished, or a file is not what heal writes.
    """
    recipe = folder.recipe()
    numbers = folder.rounds()
    if not numbers:
        raise UserError(f"{folder.path}: no round is finished yet, so there is nothing to report")
    baseline = read_json(folder.baseline / "metrics.json")
    rounds = tuple(_read_round(folder, index) for index in numbers)
    try:
        return Results(
            recipe,
            (folder.path / "recipe.yaml").read_text(encoding="utf-8"),
            folder.facts(),
            Summary.from_json(baseline["base"]),
            Summary.from_json(baseline["prompted"]),
            Summary.from_json(baseline["opposite"]),
            _read_doses(folder, recipe),
            as_record(dict[str, Validity], baseline["validity"], folder.baseline),
            read_json(folder.baseline / "probe.json"),
            _by_stage(read_jsonl(folder.baseline / "outputs.jsonl"))["prompted"],
            folder.seconds(folder.baseline),
            rounds,
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder.baseline}: not what this version of heal writes ({error!r})") from error


def _read_doses(folder: RunFolder, recipe: Recipe) -> dict[float, Summary]:
    path = folder.doses / "metrics.json"
    if not path.is_file():
        return {}
    content = read_json(path)
    return {alpha: Summary.from_json(content[f"dose_{alpha:g}"]) for alpha in recipe.evaluation.doses}


def _read_round(folder: RunFolder, index: int) -> Round:
    path = folder.round(index)
    metrics, calibration = read_json(path / "metrics.json"), read_json(path / "calibration.json")
    completions, training = read_jsonl(path / "completions.jsonl"), read_jsonl(path / "training.jsonl")
    outputs = read_jsonl(path / "outputs.jsonl")
    try:
        return Round(
            index + 1,
            metrics,
            None if metrics["steered"] is None else Summary.from_json(metrics["steered"]),
            Summary.from_json(metrics["healed"]),
            calibration,
            tuple(Row.from_json(row) for row in completions),
            training,
            _by_stage(outputs),
            folder.seconds(path),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not what this version of heal writes ({error!r})") from error


def _by_stage(rows: Sequence[Json]) -> dict[str, list[Json]]:
    stages: dict[str, list[Json]] = {}
    for row in rows:
        stages.setdefault(row["stage"], []).append(row)
    return stages
