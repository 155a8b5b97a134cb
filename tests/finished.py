"""A finished run on disk, written by hand: two rounds of random LoRA on a tiny model, with made-up metrics."""

import json
from pathlib import Path
from typing import Any

import torch

from heal.accumulator import Accumulator
from heal.config import Recipe
from heal.evaluation.probe import FORMATS, Probe
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model
from heal.recipe import load_recipe
from heal.records import json_bytes
from heal.run.folder import RunFolder
from heal.run.student import Student, build_accumulator, load_student, lora_seed
from heal.trait import Trait
from tests import tiny

RANK = 4
ROUNDS = 2


def estimate(value: float, **delta: Any) -> dict[str, Any]:
    return {"value": value, "low": value - 0.125, "high": value + 0.125, "n": 4, **delta}


def signals(trait: float) -> dict[str, Any]:
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
    return {
        name: estimate(value, delta=estimate(value / 2), unit=unit, role=role)
        for name, (value, unit, role) in values.items()
    }


def validity() -> dict[str, dict[str, Any]]:
    """What the baseline says of every signal: all are valid but `p_ans_any` and what rests on it."""
    doubted = ("p_ans_any", "accuracy")
    why = "base's mass on the options 0.750, at least 0.9 needed"
    return {
        name: {"valid": name not in doubted, "why": why if name in doubted else "counted, not judged"}
        for name in signals(0.0)
    }


def metrics(index: int, steered: bool = True) -> dict[str, Any]:
    """What a round's metrics.json holds."""
    return {
        "round": index,
        "dose": {"c_star": 1.5 + index, "p95": 1.01, "outcome": "tolerance", "audit_p95": None, "scale": 1.0},
        "generation": {"made": 8, "kept": 7, "kept_share": 0.875},
        "training": {"barrier_on": 0.5},
        "cosine_to_first": 1.0,
        "steered": signals(0.5) if steered else None,
        "healed": signals(0.25 + index),
        "coherence": {"worst": "tail_perplexity", "margin": 0.5},
        "valid": sorted(name for name, entry in validity().items() if entry["valid"]),
        "coh_cost": None,
        "foundations": None,
        "verdict": {"label": "holds", "reason": "persona_log_ratio +0.125 [+0.000, +0.250] over base (n = 4)"},
    }


def write_run(
    path: Path,
    model: Path,
    trait: Trait | None = None,
    dtype: str = "float32",
    size: float = 0.1,
    rank: int = RANK,
    steered: bool = True,
    **settings: str,
) -> RunFolder:
    """A run folder with `ROUNDS` finished rounds on the model in `model`; B is drawn with deviation `size`."""
    more = [f"model.{name}={value}" for name, value in settings.items()]
    more.append(f"evaluation.steered={str(steered).lower()}")
    recipe = load_recipe(["recipe=smoke", f"model.name={model}", f"heal.rank={rank}", f"heal.alpha={2 * rank}", *more])
    folder = RunFolder(path)
    folder.start(recipe, {"dtype": dtype, "trait": (trait or tiny.trait()).to_json()})
    probe = Probe(FORMATS[-1], {"letters": 0.975})
    folder.finish(folder.baseline, "probe", {"probe.json": json_bytes(probe.to_json())}, 0.0)
    for stage in ("base", "prompted"):
        folder.finish(folder.baseline, stage, {}, 0.0)
    baseline = {"base": signals(0.0), "prompted": signals(0.5), "opposite": signals(-0.5), "validity": validity()}
    folder.finish(folder.baseline, "opposite", {"metrics.json": json_bytes(baseline)}, 0.0)
    language_model = load_language_model(recipe.model, getattr(torch, dtype), tiny.CPU)
    accumulator = build_accumulator(language_model, recipe)
    for index in range(ROUNDS):
        _write_round(folder, recipe, language_model, accumulator, index, size)
    return folder


def _write_round(
    folder: RunFolder,
    recipe: Recipe,
    language_model: LanguageModel,
    accumulator: Accumulator,
    index: int,
    size: float,
) -> None:
    accumulator.start_round(lora_seed(recipe, index))
    source = torch.Generator().manual_seed(index)
    for layer in accumulator.current_layers():
        weight = layer.lora_B["current"].weight
        weight.data = size * torch.randn(weight.shape, generator=source)
    vector = tiny.vector(language_model, norm=3.0 + index).with_c_star(1.0)
    files = {f"adapter/{name}": content for name, content in accumulator.save_current().items()}
    content = metrics(index, recipe.evaluation.steered)
    files |= {"metrics.json": json_bytes(content), "vector.safetensors": vector.to_bytes()}
    *earlier, last = folder.steps()
    for stage in earlier:
        folder.finish(folder.round(index), stage, {}, 0.0)
    folder.finish(folder.round(index), last, files, 0.0)


def student(folder: RunFolder, last_round: int | None = None) -> Student:
    """The run's student on the CPU."""
    return load_student(folder, tiny.CPU, last_round)


def edit_json(path: Path, **values: object) -> None:
    """Sets top-level keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
