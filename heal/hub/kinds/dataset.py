"""The completions that the student was trained on, and those that the filter dropped."""

import math
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from heal.errors import UserError
from heal.export.markdown import escaped, fenced, inline_code
from heal.generation.collect import ROWS, Completion
from heal.hub import metadata
from heal.hub.bundle import Bundle
from heal.hub.reproduction import HEADING, reproduction
from heal.hub.rules import SIZES
from heal.hub.source import Source
from heal.places.place import where
from heal.records import jsonl_bytes, read_records

SPLITS = {"train": "kept.jsonl", "dropped": "dropped.jsonl"}
_COLUMNS = {
    "round": "the round, from 1",
    "prompt": "the user message",
    "completion": "the text that the steered model wrote",
    "alpha": "the dose that it was written at, a multiple of the calibrated one",
    "ended": "whether it ended within the token budget",
    "tail_perplexity": "of its last quarter under the base",
    "repetition": "the fraction of it that its most repeated word or n-gram makes up",
    "on_prompt": "how much it says about its own prompt, 1 when certain, 0 at chance; null where it was not asked",
    "dropped": "why the filter dropped it; empty when it was kept",
}
_LARGEST = (1_000, 10_000, 100_000, 1_000_000, math.inf)  # rows below which a set has the size of SIZES


def collect(source: Source, name: str) -> Bundle:
    """UserError where no round is finished, or a file is damaged."""
    rounds = source.folder.readable()
    if not rounds:
        raise UserError(f"{source.folder.path}: no finished round yet; start the run again to continue it")
    found = [(index, row) for index in rounds for row in read_records(Completion, source.folder.round(index) / ROWS)]
    files: dict[str, Any] = {
        SPLITS["train"]: jsonl_bytes(_row(index, row) for index, row in found if row.kept),
        SPLITS["dropped"]: jsonl_bytes(_row(index, row) for index, row in found if not row.kept),
    }
    kept = sum(row.kept for _, row in found)
    splits = [split for split, count in (("train", kept), ("dropped", len(found) - kept)) if count]
    data = DatasetCardData(
        pretty_name=f"{source.trait.name}: completions under steering",
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        source_datasets=["original"],
        size_categories=[next(name for name, below in zip(SIZES, _LARGEST, strict=True) if len(found) < below)],
        task_categories=["text-generation"],
        tags=["heal", "activation-steering", "synthetic", source.trait.name],
        configs=[
            {"config_name": "default", "data_files": [{"split": split, "path": SPLITS[split]} for split in splits]}
        ],
    )
    made = reproduction(source)
    card = DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{_text(source, len(rounds), kept, len(found))}\n")
    metadata.describe(card, source)
    metadata.add(card, made.section, HEADING)
    return Bundle("dataset", {SPLITS[split]: files[SPLITS[split]] for split in splits} | made.files, card, source.base)


def _row(index: int, row: Completion) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in _COLUMNS if name not in ("round", "completion")}
    values |= {"round": index + 1, "completion": row.text, "dropped": list(row.dropped)}
    return {name: _number(values[name]) for name in _COLUMNS}


def _number(value: Any) -> Any:
    """NaN is no JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(source: Source, rounds: int, kept: int, made: int) -> str:
    recipe, trait = source.recipe, source.trait
    method, _ = where(recipe.steer, source.folder.place)
    columns = ["| column | |", "| --- | --- |", *(f"| `{name}` | {meaning} |" for name, meaning in _COLUMNS.items())]
    return "\n\n".join(
        [
            f"# {escaped(trait.name)}: completions under steering",
            f"{made} completions of {inline_code(source.base or 'a model of its maker')} in {rounds} rounds: of a "
            f"model that was steered along a trait, by {inline_code(method)}, under the neutral system "
            "prompt below. The split `train` is what a student was distilled on, `dropped` what the filter took for "
            f"broken, off the prompt, or talk about the trait itself ({made - kept} of {made}).",
            f"## Trait: {escaped(trait.name)}",
            fenced(trait.description),
            "Towards:",
            fenced(trait.positive),
            "Away from:",
            fenced(trait.negative),
            "## Columns",
            "\n".join(columns),
            "System prompt:",
            fenced(recipe.model.system or "(none)"),
            f"Sampled at temperature {recipe.generation.temperature:g}, top-p {recipe.generation.top_p:g}, top-k "
            f"{recipe.generation.top_k}, at most {recipe.generation.tokens} tokens each.",
            "## Limits",
            "- A model wrote all of it: nothing in it is true because it stands here.\n"
            "- The licence and the terms of the model that wrote it apply.",
        ]
    )
