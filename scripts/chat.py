"""Base, steered and healed side by side: `python scripts/chat.py run=runs/x prompt="Do you love humanity?"`."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from rich.text import Text  # noqa: E402

from heal.config import key  # noqa: E402
from heal.environment import quiet_libraries  # noqa: E402
from heal.errors import UserError  # noqa: E402
from heal.guard import command  # noqa: E402
from heal.options import options_help, read_options, resolve_device  # noqa: E402
from heal.recipe import main_words  # noqa: E402
from heal.run.folder import RunFolder  # noqa: E402

USAGE = 'python scripts/chat.py run=FOLDER [prompt="..."] [key=value ...]'
PURPOSE = """Answers as base, steered and healed side by side. "steered" is what a round distilled: the student
before that round, with the round's vector at alpha x c*; "healed" is what came out of the round. Without prompt= it
reads one prompt a line until an empty line or Ctrl-D; every prompt is a chat of its own."""
WIDE = 100  # columns of the terminal from which the answers stand side by side


@dataclass
class Options:
    run: str = key("", "a run folder, as in runs/kl_rev_rmse-love-embedded-s0")
    prompt: str | None = key(None, "what to answer; none: read prompts line by line")
    alpha: float = key(1.0, "dose of the steered answer, a multiple of c*")
    tokens: int = key(128, "token budget of an answer", 1)
    temperature: float = key(0.0, "sampling temperature; 0: greedy", 0)
    round: int | None = key(None, "which round, counted from 0 as in rounds/NN; none: the last one", 0)
    seed: int = key(0, "seed of the sampling", 0)
    device: str = key("auto", "auto, cpu, cuda, cuda:1 ...")


def main() -> None:
    """Reads the words, loads the run, answers."""
    options = read_options(Options, main_words())
    folder = RunFolder(Path(options.run).expanduser())
    folder.recipe()  # a folder that is no run is said at once
    if options.prompt is not None and not options.prompt.strip():
        raise UserError("prompt=: the prompt is empty")
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    console.print(Text("loading the run ...", style="dim"))
    answer, heads = load(folder, options)
    if options.prompt is not None:
        show(console, heads, answer, options.prompt)
        return
    while prompt := read_line():
        if not sys.stdin.isatty():
            console.print(Text(printable(f"you> {prompt}")))
        show(console, heads, answer, prompt)


def load(folder: RunFolder, options: Options) -> tuple[Callable[[str, str], str], dict[str, str]]:
    """A function (stage, prompt) -> answer, and the heading of each stage."""
    quiet_libraries()
    from heal.decoding import Sampling, decode
    from heal.run.student import load_student
    from heal.steering.vector import SteeringVector

    student = load_student(folder, resolve_device(options.device), options.round, fold_last=False)
    last, accumulator, model = student.rounds[-1], student.accumulator, student.model
    vector = SteeringVector.load(folder.round(last) / "vector.safetensors")
    if vector.c_star is None:
        raise UserError(f"{folder.round(last) / 'vector.safetensors'}: the vector has no calibrated dose")
    coefficient = options.alpha * vector.c_star
    before = "base" if last == 0 else f"the student after round {last}"
    heads = {
        "base": f"base ({model.name})",
        "steered": f"steered ({before} + {options.alpha:g} x c* of round {last + 1} = {coefficient:.3g})",
        "healed": f"healed (after round {last + 1}, rounds/{last:02d})",
    }
    stages = {"base": accumulator.base, "steered": accumulator.previous, "healed": accumulator.student}
    sampling = Sampling(options.temperature, student.recipe.generation.top_p, student.recipe.generation.top_k)

    def answer(stage: str, prompt: str) -> str:
        ids = model.chat.ids(student.recipe.model.system, prompt)
        room = model.context - len(ids)
        if room < 1:
            return f"(the prompt is {len(ids)} tokens long; the model's context is {model.context})"
        steer = {"intervention": vector, "coefficients": [coefficient]} if stage == "steered" else {}
        seeds = [("chat", options.seed, prompt)] if options.temperature else None
        with stages[stage]():
            said = decode(model, [ids], min(options.tokens, room), sampling=sampling, seeds=seeds, **steer)[0]
        text = model.chat.decode(list(said.ids)) + ("" if said.ended else " ...")
        return text if said.finite else f"{text} (stopped: the logits are not finite)"

    return answer, heads


def show(console: Console, heads: dict[str, str], answer: Callable[[str, str], str], prompt: str) -> None:
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


if __name__ == "__main__":
    command(main_words(), lambda: options_help(Options, USAGE, PURPOSE), main)
