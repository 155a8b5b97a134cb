"""A finished run on disk, written by hand: two rounds of random LoRA on a tiny model, with made-up metrics."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from heal.accumulator import Accumulator
from heal.evaluation.metrics import (
    METRICS,
    BaselineMetrics,
    Coherence,
    DoseFigures,
    GenerationFigures,
    RoundMetrics,
    SignalFigures,
    Summary,
    TrainingFigures,
    Verdict,
)
from heal.evaluation.probe import FORMATS, Probe
from heal.evaluation.results import OUTPUTS, StageResult, output_rows
from heal.evaluation.signal import TRAIT, Validity
from heal.evaluation.signal import signals as descriptions
from heal.evaluation.stats import Estimate
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model
from heal.recipe import load_recipe
from heal.records import SEAL, json_bytes, jsonl_bytes, record_bytes
from heal.run.facts import Facts
from heal.run.folder import RunFolder
from heal.run.manifest import JUDGE
from heal.run.student import Student, build_accumulator, load_student, lora_seed
from heal.trait import Trait
from tests import tiny

RANK = 4
ROUNDS = 2


def figures(value: float, unit: str, role: str) -> SignalFigures:
    """A signal whose interval reaches 1/8 to either side, and half of whose value is its difference to base."""
    delta = Estimate(value / 2, value / 2 - 0.125, value / 2 + 0.125, 4)
    return SignalFigures(value, value - 0.125, value + 0.125, 4, delta, role, unit)


def signals(trait: float) -> Summary:
    """A stage's signals: value, unit and role of each."""
    values = {
        "tail_perplexity": (3.0, "perplexity", "coherence"),
        "repetition_share": (0.25, "share", "coherence"),
        "persona_log_ratio": (trait, "nats/token", "trait"),
        "p_ans_any": (0.75, "probability", "coherence"),
        "accuracy": (0.5, "share", "coherence"),
        "alive_share": (1.0, "share", "coherence"),
        "neutral_kl_p95": (0.125, "nats", "off_target"),
    }
    return {name: figures(*signal) for name, signal in values.items()}


def stage_result(stage: str, trait: float) -> StageResult:
    """The trait's items at a stage."""
    return StageResult(stage, (), (descriptions()[TRAIT].measured((trait,) * 4),))


def baseline() -> BaselineMetrics:
    """The baseline's metrics: all signals are valid but `p_ans_any` and what rests on it."""
    doubt = Validity(False, "base's mass on the options 0.750, at least 0.9 needed")
    sure = Validity(True, "counted, not judged")
    validity = {name: doubt if name in ("p_ans_any", "accuracy") else sure for name in signals(0.0)}
    return BaselineMetrics(signals(0.0), signals(0.5), signals(-0.5), validity)


def round_metrics(index: int, steered: bool = True) -> RoundMetrics:
    """What a round comes to; `index` is from 0."""
    return RoundMetrics(
        round=index + 1,
        dose=DoseFigures(1.5 + index, 1.01, "tolerance", audit_p95=None, scale=1.0),
        generation=GenerationFigures(made=8, kept=7, kept_share=0.875, ended_share=0.5),
        training=TrainingFigures(loss=1.5, ce=1.25, D_mean=0.5, D_max=1.0, barrier_on=0.5),
        cosine_to_first=1.0,
        steered=signals(0.5) if steered else None,
        healed=signals(0.25 + index),
        coherence=Coherence("tail_perplexity", 0.5),
        valid=tuple(sorted(name for name, judged in baseline().validity.items() if judged.valid)),
        foundations=None,
        verdict=Verdict("holds", "persona_log_ratio +0.125 [+0.000, +0.250] over base (n = 4)"),
    )


def metrics(index: int, steered: bool = True) -> dict[str, Any]:
    """The same as metrics.json has it."""
    return asdict(round_metrics(index, steered))


def write_run(
    path: Path,
    model: Path,
    trait: Trait | None = None,
    dtype: str = "float32",
    size: float = 0.1,
    rank: int = RANK,
    steered: bool = True,
    band: str = "[0.2,0.8]",
    **settings: str,
) -> RunFolder:
    """A run folder with `ROUNDS` finished rounds on the model in `model`; B is drawn with deviation `size`."""
    more = [f"heal.band={band}"]
    more += [f"model.{name}={value}" for name, value in settings.items()]
    more.append(f"evaluation.steered={str(steered).lower()}")
    recipe = load_recipe(["recipe=smoke", f"model.name={model}", f"heal.rank={rank}", f"heal.alpha={2 * rank}", *more])
    folder = RunFolder(path)
    folder.start(recipe, Facts(dtype, trait or tiny.trait()))
    probe = Probe(FORMATS[-1], {"letters": 0.975})
    folder.finish(folder.baseline, "probe", {"probe.json": record_bytes(probe)}, 0.0)
    folder.finish(folder.baseline, "ways", {"ways.json": json_bytes({})}, 0.0)
    stages = [stage_result(stage, score) for stage, score in (("base", 0.0), ("prompted", 0.5), ("opposite", -0.5))]
    for stage in stages:
        folder.finish(folder.baseline, stage.stage, stage.files(), 0.0)
    outputs = jsonl_bytes(row for stage in stages for row in output_rows(stage))
    folder.finish(folder.baseline, JUDGE, {METRICS: record_bytes(baseline()), OUTPUTS: outputs}, 0.0)
    language_model = load_language_model(recipe.model, getattr(torch, dtype), tiny.CPU)
    accumulator = build_accumulator(language_model, recipe)
    for index in range(ROUNDS):
        _write_round(folder, language_model, accumulator, index, size)
    return folder


def _write_round(
    folder: RunFolder, language_model: LanguageModel, accumulator: Accumulator, index: int, size: float
) -> None:
    recipe = folder.recipe()
    accumulator.start_round(lora_seed(recipe, index))
    source = torch.Generator().manual_seed(index)
    for layer in accumulator.current_layers():
        weight = layer.lora_B["current"].weight
        weight.data = size * torch.randn(weight.shape, generator=source)
    vector = tiny.vector(language_model, norm=3.0 + index).with_c_star(1.0)
    files = {f"adapter/{name}": content for name, content in accumulator.save_current().items()}
    content = round_metrics(index, recipe.evaluation.steered)
    healed = stage_result("healed", 0.25 + index)
    files |= {METRICS: record_bytes(content), "vector.safetensors": vector.to_bytes()}
    files[OUTPUTS] = jsonl_bytes(output_rows(healed))
    *earlier, last = folder.steps()
    for step in earlier:
        written = healed.files() if step == "healed" else {}
        folder.finish(folder.round(index), step, written, 0.0)
    folder.finish(folder.round(index), last, files, 0.0)


def student(folder: RunFolder, last_round: int | None = None) -> Student:
    """The run's student on the CPU."""
    return load_student(folder, tiny.CPU, last_round)


def as_earlier(folder: RunFolder) -> None:
    """Makes the facts those of a version that did not say which recipe the run began with."""
    path = folder.path / "facts.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if name not in ("recipes", SEAL)}))


def edit_json(path: Path, **values: object) -> None:
    """Sets top-level keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
