"""Answers as base, steered and healed side by side."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from heal.config import key
from heal.environment import quiet_libraries
from heal.errors import UserError
from heal.guard import command
from heal.options import options_help, read_options, resolve_device
from heal.run.best import meant_round
from heal.run.folder import RunFolder

USAGE = 'heal chat run=FOLDER [prompt="..."] [key=value ...]'
PURPOSE = """Answers as base, steered and healed side by side. "steered" is what a round distilled: the student
before that round, with the round's vector at alpha x c*; "healed" is what came out of the round. Without prompt= it
reads one prompt a line until an empty line or Ctrl-D; every prompt is a chat of its own.
Where the model thinks first (model.thinking), the answer after the thought is shown."""
WIDE = 100  # columns of the terminal from which the answers stand side by side

Answer = Callable[[str, str], str]  # (stage, prompt) -> answer


@dataclass
class Options:
    run: str = key("", "a run folder, as in runs/kl_rev_rmse-love-embedded-s0")
    prompt: str | None = key(None, "what to answer; none: read prompts line by line")
    alpha: float = key(1.0, "dose of the steered answer, a multiple of c*")
    tokens: int = key(128, "token budget of an answer", 1)
    temperature: float = key(0.0, "sampling temperature; 0: greedy", 0)
    round: str | None = key(None, "which round: counted from 1, best or last; none: what the run's export.round says")
    seed: int = key(0, "seed of the sampling", 0)
    device: str = key("auto", "auto, cpu, cuda, cuda:1 ...")


def main(words: Sequence[str]) -> None:
    """`heal chat`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), chat)


def chat(words: Sequence[str]) -> None:
    """Loads the run and answers."""
    options = read_options(Options, words)
    folder = RunFolder(Path(options.run).expanduser())
    folder.recipe()  # a folder that is no run is said at once, and so is a round that is none
    last, which = meant_round(folder, options.round)
    if options.prompt is not None and not options.prompt.strip():
        raise UserError("prompt=: the prompt is empty")
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    console.print(Text("loading the run ...", style="dim"))
    answer, heads = load(folder, options, last)
    console.print(Text(which, style="dim"))
    if options.prompt is not None:
        show(console, heads, answer, options.prompt)
        return
    while prompt := read_line():
        if not sys.stdin.isatty():
            console.print(Text(printable(f"you> {prompt}")))
        show(console, heads, answer, prompt)


def load(folder: RunFolder, options: Options, last: int | None = None) -> tuple[Answer, dict[str, str]]:
    """A function (stage, prompt) -> answer, and the heading of each stage; `last`: the round's index."""
    quiet_libraries()
    from heal.decoding import Sampling
    from heal.responding import respond
    from heal.run.student import load_student
    from heal.steering.vector import SteeringVector

    student = load_student(folder, resolve_device(options.device), last, fold_last=False)
    index, accumulator, model = student.rounds[-1], student.accumulator, student.model
    vector = SteeringVector.load(folder.round(index) / "vector.safetensors")
    if vector.c_star is None:
        raise UserError(f"{folder.round(index) / 'vector.safetensors'}: the vector has no calibrated dose")
    coefficient = options.alpha * vector.c_star
    before = "base" if index == 0 else f"the student after round {index}"
    heads = {
        "base": f"base ({model.name})",
        "steered": f"steered ({before} + {options.alpha:g} x c* of round {index + 1} = {coefficient:.3g})",
        "healed": f"healed (after round {index + 1})",
    }
    stages = {"base": accumulator.base, "steered": accumulator.previous, "healed": accumulator.student}
    sampling = Sampling(options.temperature, student.recipe.generation.top_p, student.recipe.generation.top_k)

    def answer(stage: str, prompt: str) -> str:
        system = student.recipe.model.system
        ids = model.chat.ids(system, prompt)
        room = model.context - model.thinking - model.longest_prompt(system, prompt)
        if room < 1:
            thought = f", and a thought has up to {model.thinking}" if model.thinking else ""
            return f"(the prompt is {len(ids)} tokens long{thought}; the model's context is {model.context})"
        shift, doses = (vector, [coefficient]) if stage == "steered" else (None, None)
        seeds = [("chat", options.seed, prompt)] if options.temperature else None
        tokens = min(options.tokens, room)
        with stages[stage]():
            response = respond(model, [(system, prompt)], tokens, shift, doses, sampling=sampling, seeds=seeds)[0]
        completion = response.completion
        if response.unclosed and completion.finite:
            return f"(no answer: the thought was not closed within {model.thinking} tokens)"
        text = model.chat.decode(list(completion.ids)) + ("" if completion.ended else " ...")
        return text if completion.finite else f"{text} (stopped: the logits are not finite)"

    return answer, heads


def show(console: Console, heads: dict[str, str], answer: Answer, prompt: str) -> None:
    """The three answers: columns on a wide terminal, one below the other otherwise."""
    if console.is_terminal and console.width >= WIDE:
        table = Table(expand=True)
        for head in heads.values():
            table.add_column(Text(head, style="bold"), ratio=1)
        with console.status("answering ..."):
            table.add_row(*(Text(printable(answer(stage, prompt))) for stage in heads))
        console.print(table)
        return
    for stage, head in heads.items():
        console.print(Text(head, style="bold"))
        console.print(Text(printable(answer(stage, prompt))), "", sep="\n")


def printable(text: str) -> str:
    """`text` without control characters, which could move the cursor or recolour the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", "", text).strip()


def read_line() -> str:
    """The next prompt; empty at the end."""
    try:
        return input("you> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
