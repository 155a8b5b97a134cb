"""Measures base and student with EleutherAI's lm-eval, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from heal.config import key
from heal.console import Console
from heal.environment import quiet_libraries
from heal.errors import UserError
from heal.guard import command
from heal.options import options_help, read_options, resolve_device
from heal.run.best import meant_round
from heal.run.folder import RunFolder

USAGE = "heal eval-harness run=FOLDER tasks=NAME,NAME [key=value ...]"
PURPOSE = """Asks base and a finished student the tasks of EleutherAI's lm-eval (pip install 'heal[harness]'), prints
both with their paired difference, and keeps them in FOLDER/harness, from where the report takes them. lm-eval downloads
its tasks from the hub; include= names a folder of task files of your own."""


@dataclass
class Options:
    run: str = key("", "a run folder, as in runs/kl_rev_rmse-love-embedded-s0")
    tasks: str = key("", "names of lm-eval's tasks, groups or tags, separated by commas, as in hellaswag,arc_easy")
    include: str | None = key(None, "a folder of task files (YAML) of your own")
    round: str | None = key(None, "which round: counted from 1, best or last; none: what the run's export.round says")
    limit: int | None = key(None, "items of a task at most; none: all", 1)
    shots: int | None = key(None, "examples before each item; none: the task's own number", 0)
    chat: Literal["true", "false"] = key("false", "put items as a chat, under the run's neutral system prompt")
    batch_size: int = key(8, "sequences side by side", 1)
    device: str = key("auto", "auto, cpu, cuda, cuda:1 ...")


def main(words: Sequence[str]) -> None:
    """`heal eval-harness`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), eval_harness)


def eval_harness(words: Sequence[str]) -> None:
    """Measures, prints, keeps."""
    options = read_options(Options, words)
    names = tuple(dict.fromkeys(name.strip() for name in options.tasks.split(",") if name.strip()))
    if not names:
        raise UserError(f"tasks={options.tasks}: names no task")
    include = None if options.include is None else Path(options.include).expanduser()
    if include is not None and not include.is_dir():
        raise UserError(f"include={options.include}: no such folder")
    folder = RunFolder(Path(options.run).expanduser())
    folder.recipe()  # a folder that is no run is said at once, and so is a round that is none
    last, which = meant_round(folder, options.round)
    from heal.studies import harness

    harness.require()
    console = Console()
    console.say("loading the libraries ...")
    quiet_libraries()
    from heal.evaluation.harness import Harness
    from heal.run.student import load_student

    asked = harness.Asked(names, include, options.limit, options.shots, options.chat == "true", options.batch_size)
    manager = harness.task_manager(asked)
    with console.step("student") as line:
        student = load_student(folder, resolve_device(options.device), last)
        line.result(f"{student.recipe.model.name} after round {student.rounds[-1] + 1}")
    console.say(f"which      {which}")
    with console.step("lm-eval") as line:
        figures = harness.evaluate(student, asked, manager, line.progress)
        line.result(f"{', '.join(names)} at base and of the student")
    for one in figures:
        console.say(f"{one.title}: base {one.base:.3f}, student {one.student:.3f}, difference {one.delta:+.3f}")
    path = Harness.load(folder.path, student.rounds[-1] + 1).with_tasks(figures).save(folder.path)
    console.say(f"kept       {path}; heal report run={options.run} shows it among the side effects")
