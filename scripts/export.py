"""A run, or a steering vector, as an ordinary PEFT adapter or model: `python scripts/export.py run=runs/x`."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from heal.config import key  # noqa: E402
from heal.console import Console  # noqa: E402
from heal.environment import quiet_libraries  # noqa: E402
from heal.errors import UserError  # noqa: E402
from heal.evaluation.choice import best_round  # noqa: E402
from heal.guard import command  # noqa: E402
from heal.options import options_help, read_options, resolve_device  # noqa: E402
from heal.recipe import main_words  # noqa: E402
from heal.records import read_json  # noqa: E402
from heal.run.folder import RunFolder  # noqa: E402

USAGE = "python scripts/export.py run=FOLDER | vector=FILE [key=value ...]"
PURPOSE = (
    "Writes what a run has trained, or one steering vector, as an ordinary adapter or model, loads it again and "
    "compares its logits."
)
OF_A_RUN = ("round", "rank")  # keys that say nothing of a vector
LOADING = ("pad_token", "chat_template", "revision")  # keys of the recipe's model section
OF_A_VECTOR = ("c", "model", *LOADING)  # and of a run
HINTS = {"rank": " (its adapter has rank 1)", "c": " (gate=... scales a run)"}


@dataclass
class Options:
    run: str | None = key(None, "a run folder, as in runs/kl_rev_rmse-love-embedded-s0")
    vector: str | None = key(
        None, "instead of a run: a steering vector of mean_diff or pca, as in a run's rounds/00/vector.safetensors"
    )
    format: Literal["adapter", "model"] = key("adapter", "a PEFT LoRA folder, or a whole model with the update merged")
    round: str | None = key(
        None, "the last round to include, counted from 0 as in rounds/NN, or best; none: the last one"
    )
    gate: float = key(1.0, "multiplier of the whole update; 1: as trained")
    rank: int | None = key(None, "truncate the adapter to this rank by SVD; none: exact", 1)
    c: float | None = key(None, "of a vector: the coefficient, of either sign; none: the vector's c_star")
    bias: Literal["true", "false"] = key(
        "true", "of a vector: true is exact; false is rank 1 without a bias, nearly, for engines that take none"
    )
    model: str | None = key(None, "of a vector: its model, if not under the name that the vector has for it")
    pad_token: str | None = key(
        None,
        "of a vector: pad token, for a tokenizer that has none; this and the next two, if not as in the recipe of the "
        "run or study whose folder holds the vector",
    )
    chat_template: str | None = key(None, "of a vector: path of a Jinja chat template, for a tokenizer that has none")
    revision: str | None = key(None, "of a vector: hub revision (branch, tag or commit) of its model")
    out: str | None = key(
        None,
        "folder to write; none: FOLDER/export/adapter or model, of a vector NAME-adapter beside it, with what differs "
        "in its name",
    )
    device: str = key("auto", "auto, cpu, cuda, cuda:1 ...")


def main() -> None:
    """Reads the words, exports a run or a vector."""
    options = read_options(Options, main_words())
    check(options)
    if options.vector:
        export_steering_vector(options, Path(options.vector).expanduser())
    elif options.run:
        export_run(options, RunFolder(Path(options.run).expanduser()))


def check(options: Options) -> None:
    """Raises UserError for keys that do not go together."""
    if bool(options.run) == bool(options.vector):
        which = "not both" if options.run else "one of them is needed"
        raise UserError(f"run=FOLDER or vector=FILE: {which}; --help lists the keys")
    what, others = ("steering vector", OF_A_RUN) if options.vector else ("run", OF_A_VECTOR)
    for name in others:
        if (value := getattr(options, name)) is not None:
            raise UserError(f"{name}={value}: says nothing of a {what}; leave it out{HINTS.get(name, '')}")
    if options.run and options.bias == "false":
        raise UserError("bias=false: says nothing of a run, whose adapter has no bias; leave it out")
    if options.vector and options.gate != 1:
        raise UserError(f"gate={options.gate:g}: a steering vector is scaled by its coefficient; use c=...")
    if options.vector and options.format == "model":
        raise UserError(
            "format=model: most models' Linears have no bias that a steering vector could be merged into; "
            "use format=adapter"
        )
    if options.format == "model" and options.rank is not None:
        raise UserError(f"rank={options.rank}: a merged model has no rank; use format=adapter, or leave rank out")


def export_run(options: Options, folder: RunFolder) -> None:
    """Loads the student, exports it, says what came out."""
    folder.recipe()  # a folder that is no run is said at once, and so is a round that is none
    chosen = chosen_round(folder, options.round)
    path = Path(options.out).expanduser() if options.out else default_path(folder, options)
    console = Console()
    console.say("loading the libraries ...")
    quiet_libraries()
    from heal.export.adapter import export_adapter
    from heal.export.folder import check_place
    from heal.export.merged import export_merged
    from heal.run.student import load_student

    check_place(path)
    with console.step("student") as shown:
        student = load_student(folder, resolve_device(options.device), chosen)
        rank, last = student.accumulator.history_rank, student.rounds[-1]
        shown.found(f"{student.recipe.model.name} after round {last + 1} (rounds/{last:02d}), rank {rank}")
    with console.step("export") as shown:
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


def export_steering_vector(options: Options, file: Path) -> None:
    """Loads the vector and its model, exports it, says what came out."""
    bias = options.bias != "false"
    path = Path(options.out).expanduser() if options.out else vector_path(file, options)
    console = Console()
    console.say("loading the libraries ...")
    quiet_libraries()
    from heal.export.folder import check_place
    from heal.export.vector import check_additive, dose, export_vector, model_section
    from heal.models.load import load_language_model
    from heal.models.precision import resolve_dtype
    from heal.steering.vector import SteeringVector

    check_place(path)
    vector = SteeringVector.load(file)
    check_additive(vector)
    c = dose(vector, options.c)
    given = {"name": options.model} | {name: getattr(options, name) for name in LOADING}
    config = replace(model_section(file, vector), **{name: value for name, value in given.items() if value})
    vector = replace(vector, model=config.name)
    with console.step("model") as shown:
        device = resolve_device(options.device)
        dtype, why = resolve_dtype(config.dtype, device)
        model = load_language_model(config, dtype, device)
        shown.found(f"{config.name} in {str(dtype).removeprefix('torch.')} on {device} ({why})")
    with console.step("export") as shown:
        export = export_vector(vector, model, config, path, c, bias)
        shown.found(f"written and loaded again; logits within {export.facts.error:.1e} of the steered model's")
    for layer, gate in export.facts.gates.items():
        console.say(
            f"gate       block {layer}, {gate.kind}: mean {gate.mean:.3f}, sd {gate.sd:.3f}, p5 {gate.p5:.3f}, "
            f"p95 {gate.p95:.3f}; at the first position {gate.first:.3f}"
        )
    for name, kl in (("adapter", export.facts.kl), ("base", export.facts.steering_kl)):
        if kl is not None:
            console.say(f"KL         steered to {name}: p50 {kl.p50:.2e}, p95 {kl.p95:.2e} nats per token")
    carried = "as a bias" if bias else "without a bias"
    console.say(f"adapter    {export.path} ({vector.method} of {vector.trait} at c = {c:g}, {carried})")
    console.say(f"load it    {how_to_load(export.path, 'adapter')}")
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
        raise UserError(f"round=best: no round of {folder.path} is coherent with a valid trait shift above zero")
    return rounds[best]


def default_path(folder: RunFolder, options: Options) -> Path:
    """FOLDER/export/adapter or model, and what was asked for beyond that: adapter-round1-rank32."""
    gate = None if options.gate == 1 else f"{options.gate:g}"
    asked = {"round": options.round, "gate": gate, "rank": options.rank}
    parts = [options.format] + [f"{name}{value}" for name, value in asked.items() if value is not None]
    return folder.path / "export" / "-".join(parts)


def vector_path(file: Path, options: Options) -> Path:
    """NAME-adapter beside the vector, and what was asked for beyond that: vector-adapter-c0.5-rank1."""
    parts = [f"{file.stem}-adapter"]
    parts += [] if options.c is None else [f"c{options.c:g}"]
    parts += ["rank1"] if options.bias == "false" else []
    return file.with_name("-".join(parts))


def how_to_load(path: Path, kind: str) -> str:
    """One line of Python."""
    if kind == "adapter":
        return f"peft.AutoPeftModelForCausalLM.from_pretrained({str(path)!r})"
    return f"transformers.AutoModelForCausalLM.from_pretrained({str(path)!r})"


if __name__ == "__main__":
    command(main_words(), lambda: options_help(Options, USAGE, PURPOSE), main)
