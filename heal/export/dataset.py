"""A run's texts as a dataset with its card: what was sampled and filtered, and what every stage answered."""

import math
from pathlib import Path
from typing import Any

import yaml

from heal.console import counted
from heal.errors import UserError
from heal.evaluation.results import OUTPUTS
from heal.export.base import base_name
from heal.generation.collect import Collection
from heal.markdown import escaped, fenced, inline_code, personas
from heal.records import jsonl_bytes, read_jsonl
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


Tables = dict[str, list[dict[str, Any]]]  # rows by the name of their configuration


def dataset_files(folder: RunFolder) -> Files:
    """The files of the dataset: JSON lines for each of CONFIGS, and the card, which `datasets` reads both by.

    Raises:
        UserError: see `tables_of`.
    """
    tables = tables_of(folder)
    return table_files(tables) | {CARD: card_text(folder, tables, base_name(folder.recipe().model)).encode()}


def tables_of(folder: RunFolder) -> Tables:
    """The rows of each of CONFIGS; what is no number is null.

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
    return {name: [_finite(row) for row in rows] for name, rows in zip(CONFIGS, (completions, outputs), strict=True)}


def table_files(tables: Tables) -> Files:
    """The tables as JSON lines, each row with all of its table's columns."""
    files: Files = {}
    for name, rows in tables.items():
        columns = dict.fromkeys(column for row in rows for column in row)
        files[f"{name}.jsonl"] = jsonl_bytes({column: row.get(column) for column in columns} for row in rows)
    return files


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


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def card_text(folder: RunFolder, tables: Tables, base: str) -> str:
    """README.md: what `datasets` needs to find the tables, and what a reader needs to understand them.

    Args:
        folder: of the run.
        tables: see `tables_of`.
        base: what the run's base is called.
    """
    recipe, trait = folder.recipe(), folder.started().trait
    front = {
        "configs": [{"config_name": name, "data_files": f"{name}.jsonl"} for name in tables],
        "tags": ["heal", "activation-steering", "self-distillation", "synthetic", trait.name],
        "task_categories": ["text-generation"],
    }
    came = "given by the user" if recipe.data.completions else "sampled under a steering vector"
    sizes = "\n".join(f"| `{name}` | {counted(len(rows), 'row')} |" for name, rows in tables.items())
    sampling = recipe.generation
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {escaped(trait.name)}: texts of {escaped(base)}",
        f"Texts of a run of heal, which trained the trait {inline_code(trait.name)} into {inline_code(base)} in "
        f"{counted(len(folder.readable()), 'round')}. They were written by a model: they are not facts, and not "
        "anybody's opinion, and the licence and terms of that model apply.",
        f"| configuration | |\n| --- | --- |\n{sizes}",
        _COLUMNS.format(came=came),
        "## Trait",
        *personas(trait),
        "## Sampling",
        "System prompt:",
        fenced(recipe.model.system or "(none)"),
        f"Completions at temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, top-k {sampling.top_k}, at "
        f"most {sampling.tokens} tokens each.",
        "## Loading",
        fenced(_LOADING, "python"),
    ]
    return "\n\n".join(parts) + "\n"


def default_place(folder: RunFolder) -> Path:
    """Where a run's dataset goes unless somebody says otherwise."""
    return folder.path / "export" / "dataset"
