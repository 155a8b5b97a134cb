"""EleutherAI's lm-eval on base and student: the same items, so that differences are paired."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from heal.errors import UserError, nearest
from heal.evaluation.harness import HarnessFigures
from heal.evaluation.stats import Estimate, estimate, paired_difference
from heal.progress import Progress
from heal.randomness import derive_seed
from heal.run.student import Student

_SAME = 1e-9  # between a task's own aggregate and the mean of its items


@dataclass(frozen=True)
class Asked:
    """What lm-eval is to measure.

    Attributes:
        tasks: names of tasks, groups or tags.
        include: a folder of task files of the user's own; None: lm-eval's own tasks alone.
        limit: items of a task at most; None: all.
        shots: examples before each item; None: the task's own number.
        chat: put items as a chat, under the run's system prompt.
        batch_size: sequences side by side.
    """

    tasks: Sequence[str]
    include: Path | None = None
    limit: int | None = None
    shots: int | None = None
    chat: bool = False
    batch_size: int = 8


def require() -> None:
    """Raises UserError where lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise UserError("the package lm_eval is not installed: pip install 'heal[harness]'")


def task_manager(asked: Asked) -> Any:
    """lm-eval's index of tasks; UserError where it has none of a name."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if asked.include is None else str(asked.include))
    for name in asked.tasks:
        if name not in manager.all_tasks:
            close = nearest(name, list(manager.all_tasks))
            hint = close if "did you mean" in close else "; lm-eval ls tasks lists them"
            raise UserError(f"tasks={name}: lm-eval has no such task{hint}")
    return manager


def evaluate(student: Student, asked: Asked, manager: Any, progress: Progress) -> tuple[HarnessFigures, ...]:
    """Every metric of every task, at base and of the student.

    Args:
        student: the run's.
        asked: the tasks.
        manager: what `task_manager` gave.
        progress: told (models measured, 2).
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    recipe, model = student.recipe, student.model
    found: list[Mapping[str, Any]] = []
    progress(0, 2)
    for gates in (student.accumulator.base, student.accumulator.student):
        with gates():
            wrapped = HFLM(
                pretrained=model.model,
                tokenizer=model.chat.tokenizer,
                backend="causal",
                batch_size=asked.batch_size,
                max_length=model.context,
            )
            results = simple_evaluate(
                model=wrapped,
                tasks=list(asked.tasks),
                task_manager=manager,
                num_fewshot=asked.shots,
                limit=asked.limit,
                apply_chat_template=asked.chat,
                system_instruction=recipe.model.system if asked.chat else None,
                bootstrap_iters=0,
                random_seed=derive_seed(recipe.run.seed, "harness") % 2**32,
            )
        assert results is not None  # of the first process
        found.append(results)
        progress(len(found), 2)
    base, healed = found
    seed = derive_seed(recipe.run.seed, "bootstrap")
    return tuple(
        _figures(task, metric, filter, asked, (base, healed), recipe.evaluation.resamples, seed)
        for task in base["samples"]
        for metric, filter in _metrics(base["results"][task])
    )


def _metrics(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(metric, filter) of a task: `acc,none`, but no standard error."""
    pairs = [name.split(",", 1) for name in results if "," in name]
    return [(metric, filter) for metric, filter in pairs if not metric.endswith("_stderr")]


def _figures(
    task: str,
    metric: str,
    filter: str,
    asked: Asked,
    found: tuple[Mapping[str, Any], Mapping[str, Any]],
    resamples: int,
    seed: int,
) -> HarnessFigures:
    whole = [float(results["results"][task][f"{metric},{filter}"]) for results in found]
    items = [_items(results["samples"][task], metric, filter) for results in found]
    of_items = all(
        values and math.isclose(sum(values) / len(values), value, abs_tol=_SAME)
        for values, value in zip(items, whole, strict=True)
    )
    if of_items:
        base, student = (estimate(values, "mean", resamples, seed) for values in items)
        delta = paired_difference(items[1], items[0], "mean", resamples, seed)
    else:  # BLEU, perplexity and others are no mean of items
        count = len(found[0]["samples"][task])
        base, student, delta = (Estimate(value, math.nan, math.nan, count) for value in (*whole, whole[1] - whole[0]))
    shared = found[0]
    return HarnessFigures(
        task=task,
        metric=metric,
        filter=filter,
        shots=shared["n-shot"].get(task),
        limit=asked.limit,
        chat=asked.chat,
        higher_is_better=shared["higher_is_better"].get(task, {}).get(metric),
        lm_eval=version("lm_eval"),
        version=str(shared["versions"].get(task)),
        base=base,
        student=student,
        delta=delta,
    )


def _items(samples: Sequence[Mapping[str, Any]], metric: str, filter: str) -> list[float]:
    """The metric's value of each item in the items' order; empty where they have none that is a number."""
    rows = sorted((row for row in samples if row["filter"] == filter), key=lambda row: row["doc_id"])
    values = [float(row[metric]) for row in rows if isinstance(row.get(metric), int | float)]
    return values if len(values) == len(rows) else []
