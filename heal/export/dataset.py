"""A run's texts as a dataset with its card: what was sampled and filtered, and what every stage answered."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from heal.console import counted
from heal.errors import UserError
from heal.evaluation.results import OUTPUTS
from heal.export.base import base_name
from heal.export.markdown import escaped, fenced, inline_code
from heal.generation.collect import Collection
from heal.records import read_jsonl
from heal.run.files import Files
from heal.run.folder import RunFolder
from heal.turns import ROLES, turns_of

CONFIGS = ("completions", "outputs")
CARD = "README.md"

_COLUMNS = """\
`completions`: the completions of every round, {came}, with why the filter dropped those that it did (`kept`,
`dropped`), their `dose` in multiples of the calibrated coefficient, the perplexity of their last quarter under the
original model, and the token ids. Each round trained on its kept ones.

`outputs`: greedy answers to the held-out prompts at every stage (round 0: the original model, alone and under either
persona), with the signals that have one value for each answer.

A prompt of several turns has lines that begin with ⟨assistant⟩ and ⟨user⟩; `messages` has the turns apart."""
_LOADING = """\
from datasets import load_dataset

completions = load_dataset("PATH/TO/THIS/FOLDER", "completions", split="train")
kept = completions.filter(lambda row: row["kept"])"""


def dataset_files(folder: RunFolder) -> Files:
    """The files of the dataset: one Parquet file for each of CONFIGS, and the card, which `datasets` reads both by.

    Raises:
        UserError: the folder is no run, no round of it is finished, or a file of it is damaged.
    """
    indices = folder.readable()
    if not indices:
        raise UserError(f"{folder.path}: no round is finished yet, so there is nothing to export")
    completions = [row for index in indices for row in _completions(folder, index)]
    outputs = [{"round": 0, **row} for row in read_jsonl(folder.baseline / OUTPUTS)]
    for index in indices:
        rows = read_jsonl(folder.round(index) / OUTPUTS)
        outputs += [{"round": index + 1, **row} for row in rows if row["stage"] != "base"]
    tables = dict(zip(CONFIGS, (completions, outputs), strict=True))
    files = {f"{name}.parquet": _parquet(rows) for name, rows in tables.items()}
    return files | {CARD: _card(folder, {name: len(rows) for name, rows in tables.items()}).encode()}


def _completions(folder: RunFolder, index: int) -> list[dict[str, Any]]:
    """The completions of a round, dropped ones too, with the chats that they end."""
    return [
        {
            "round": index + 1,
            "prompt": row.prompt,
            "completion": row.text,
            "messages": [
                *({"role": ROLES[turn % 2], "content": said} for turn, said in enumerate(turns_of(row.prompt))),
                {"role": "assistant", "content": row.text},
            ],
            "kept": row.kept,
            "dropped": list(row.dropped),
            "dose": row.alpha,
            "ended": row.ended,
            "tail_perplexity": row.tail_perplexity,
            "repetition": row.repetition,
            "on_prompt": row.on_prompt,
            "prompt_ids": list(row.prompt_ids),
            "completion_ids": list(row.ids),
        }
        for row in Collection.load(folder.round(index)).rows
    ]


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as a Parquet file; numbers that are not are null, as are columns that a row lacks."""
    import datasets

    names = dict.fromkeys(name for row in rows for name in row)
    table = {name: [_finite(row.get(name)) for row in rows] for name in names}
    buffer = io.BytesIO()
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(table).to_parquet(buffer)
    return buffer.getvalue()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _card(folder: RunFolder, sizes: dict[str, int]) -> str:
    """README.md: what `datasets` needs to find the tables, and what a reader needs to understand them."""
    recipe, trait = folder.recipe(), folder.started().trait
    front = {
        "configs": [{"config_name": name, "data_files": f"{name}.parquet"} for name in sizes],
        "tags": ["heal", "activation-steering", "self-distillation", trait.name],
        "task_categories": ["text-generation"],
    }
    came = "given by the user" if recipe.data.completions else "sampled under a steering vector"
    table = "\n".join(f"| `{name}` | {counted(size, 'row')} |" for name, size in sizes.items())
    base, rounds = base_name(recipe.model), counted(len(folder.readable()), "round")
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {escaped(trait.name)}: texts of {escaped(base)}",
        f"Texts of a run of heal, which trained the trait {inline_code(trait.name)} into {inline_code(base)} in "
        f"{rounds}. They were written by a model: they are not facts, and not anybody's opinion.",
        f"| configuration | |\n| --- | --- |\n{table}",
        _COLUMNS.format(came=came),
        "## Trait",
        fenced(trait.description),
        "## Loading",
        fenced(_LOADING, "python"),
    ]
    return "\n\n".join(parts) + "\n"


def default_place(folder: RunFolder) -> Path:
    """Where a run's dataset goes unless somebody says otherwise."""
    return folder.path / "export" / "dataset"
