"""A run as an ordinary PEFT adapter or merged model: `python scripts/export.py run=runs/x format=adapter`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from heal.app import guarded, quiet_libraries  # noqa: E402
from heal.config import key  # noqa: E402
from heal.console import Console  # noqa: E402
from heal.errors import UserError  # noqa: E402
from heal.evaluation.choice import best_round  # noqa: E402
from heal.options import options_help, read_options, resolve_device  # noqa: E402
from heal.recipe import main_words, wants_help  # noqa: E402
from heal.runfolder import RunFolder, read_json  # noqa: E402

USAGE = "python scripts/export.py run=FOLDER [key=value ...]"
PURPOSE = "Writes what a run has trained as an ordinary adapter or model, loads it again and compares its logits."


@dataclass
class Options:
    run: str = key("", "a run folder, as in runs/kl_rev_rmse-love-embedded-s0")
    format: Literal["adapter", "model"] = key("adapter", "a PEFT LoRA folder, or a whole model with the update merged")
    round: str | None = key(
        None, "the last round to include, counted from 0 as in rounds/NN, or best; none: the last one"
    )
    gate: float = key(1.0, "multiplier of the whole update; 1: as trained")
    rank: int | None = key(None, "truncate the adapter to this rank by SVD; none: exact", 1)
    out: str | None = key(None, "folder to write; none: FOLDER/export/adapter or model, with what differs in its name")
    device: str = key("auto", "auto, cpu, cuda, cuda:1 ...")


def main() -> None:
    """Reads the words, loads the student, exports it, says what came out."""
    options = read_options(Options, main_words())
    if options.format == "model" and options.rank is not None:
        raise UserError(f"rank={options.rank}: a merged model has no rank; use format=adapter, or leave rank out")
    folder = RunFolder(Path(options.run))
    folder.recipe()  # a folder that is no run is said at once
    path = Path(options.out).expanduser() if options.out else default_path(folder, options)
    console = Console()
    console.say("loading the libraries ...")
    quiet_libraries()
    from heal.export.adapter import export_adapter
    from heal.export.folder import check_place
    from heal.export.merged import export_merged
    from heal.session import load_student

    check_place(path)
    with console.stage("student") as shown:
        student = load_student(folder, resolve_device(options.device), chosen_round(folder, options.round))
        rank, last = student.accumulator.history_rank, student.rounds[-1]
        shown.found(f"{student.recipe.model.name} after round {last + 1} (rounds/{last:02d}), rank {rank}")
    with console.stage("export") as shown:
        if options.format == "adapter":
            export = export_adapter(student, path, options.gate, options.rank)
        else:
            export = export_merged(student, path, options.gate)
        shown.found(f"written and loaded again; logits within {export.error:.1e} of the student's")
    kind = f"adapter of rank {export.rank}" if export.rank else "merged model"
    console.say(f"{kind:<10} {export.path} ({export.bytes / 1e6:.1f} MB)")
    if export.lost is not None:
        console.say(f"truncated  relative Frobenius error of the update {export.lost:.2e}")
    console.say(f"load it    {how_to_load(export.path, options.format)}")
    console.say(f"more       {export.path / 'README.md'}")


def chosen_round(folder: RunFolder, text: str | None) -> int | None:
    """The round that `round=text` means; None for the last one."""
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    if text != "best":
        raise UserError(f"round={text}: expected a number from 0, or best")
    rounds = folder.rounds()
    best = best_round([read_json(folder.round(index) / "metrics.json") for index in rounds])
    if best is None:
        raise UserError(f"round=best: no round of {folder.path} is coherent with a trait shift above zero")
    return rounds[best]


def default_path(folder: RunFolder, options: Options) -> Path:
    """FOLDER/export/adapter or model, and what was asked for beyond that: adapter-round1-rank32."""
    gate = None if options.gate == 1 else f"{options.gate:g}"
    asked = {"round": options.round, "gate": gate, "rank": options.rank}
    parts = [options.format] + [f"{name}{value}" for name, value in asked.items() if value is not None]
    return folder.path / "export" / "-".join(parts)


def how_to_load(path: Path, kind: str) -> str:
    """One line of Python."""
    if kind == "adapter":
        return f"peft.AutoPeftModelForCausalLM.from_pretrained({str(path)!r})"
    return f"transformers.AutoModelForCausalLM.from_pretrained({str(path)!r})"


if __name__ == "__main__":
    if wants_help(main_words()):
        print(options_help(Options, USAGE, PURPOSE))
    else:
        guarded(main)
