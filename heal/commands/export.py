"""Writes a run, or a steering vector, as an ordinary PEFT adapter or model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heal.config import ModelConfig, key
from heal.console import Console
from heal.environment import quiet_libraries
from heal.errors import UserError
from heal.guard import command
from heal.memory import memory_told
from heal.options import options_help, output_path, read_options, resolve_device
from heal.run.best import meant_round
from heal.run.folder import RunFolder

if TYPE_CHECKING:
    from heal.export.folder import Export
    from heal.export.vector import VectorExport
    from heal.models.language_model import LanguageModel
    from heal.run.student import Student
    from heal.steering.vector import SteeringVector

USAGE = "heal export run=FOLDER | vector=FILE [key=value ...]"
PURPOSE = (
    "Writes what a run has trained, or one steering vector, as an ordinary adapter or model, loads it again and "
    "compares what it says."
)
OF_A_RUN = ("round", "rank")  # keys that say nothing of a vector
LOADING = ("pad_token", "chat_template", "revision")  # keys of the recipe's model section
OF_A_VECTOR = ("c", "model", *LOADING)  # keys that say nothing of a run
HINTS = {"rank": " (its adapter has rank 1)", "c": " (gate=... scales a run)"}


@dataclass
class Options:
    run: str | None = key(None, "a run folder, as in runs/kl_rev_rmse-love-embedded-s0")
    vector: str | None = key(
        None,
        "instead of a run: a steering vector of a method that adds c v, such as mean_diff or pca, as in a run's "
        "rounds/00/vector.safetensors",
    )
    format: Literal["adapter", "model", "gguf", "gguf-adapter"] = key(
        "adapter",
        "a PEFT LoRA folder, or a whole model with the update merged; for llama.cpp, gguf: that model, or of a "
        "vector a control vector; gguf-adapter: the LoRA",
    )
    round: str | None = key(
        None, "the last round to include: counted from 1, best or last; none: what the run's export.round says"
    )
    gate: float = key(1.0, "multiplier of the whole update; 1: as trained")
    rank: int | None = key(None, "truncate the adapter to this rank by SVD; none: exact", 1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "auto", "of a merged model's weights; auto: the run's; 16 bits round a part of the update away"
    )
    quant: Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = key(
        "f16", "type of a GGUF model's weights; llama.cpp's llama-quantize makes others of f16"
    )
    max_kl: float = key(
        0.1, "nats per token at p95 that an export's KL from the student may have; above, it is refused", 0
    )
    base: str | None = key(
        None, "what others load the base from (a hub id), for a model of a local folder; none: as it was loaded"
    )
    c: float | None = key(None, "of a vector: the coefficient, of either sign; none: the vector's c_star")
    bias: Literal["true", "false"] = key(
        "true", "of a vector: true is exact; false is rank 1 without a bias, approximately, for engines that take none"
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


def main(words: Sequence[str]) -> None:
    """`heal export`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), export)


def export(words: Sequence[str]) -> None:
    """Exports a run or a vector."""
    options = read_options(Options, words)
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
    if options.vector and options.format not in ("adapter", "gguf"):
        raise UserError(
            f"format={options.format}: most models' Linears have no bias that a steering vector could be merged into; "
            "use format=adapter, or format=gguf for a control vector"
        )
    if options.out is not None:
        output_path(options.out, folder=True)
    if options.format in ("model", "gguf") and options.rank is not None:
        raise UserError(f"rank={options.rank}: a merged model has no rank; use format=adapter, or leave rank out")
    if options.format != "model" and options.dtype != "auto":
        what = "use quant=..." if options.format == "gguf" else "an adapter is in float32; use format=model"
        raise UserError(f"dtype={options.dtype}: {what}, or leave dtype out")
    if options.quant != "f16" and (options.vector or options.format != "gguf"):
        raise UserError(
            f"quant={options.quant}: it is the type of a model's weights, run=... format=gguf; leave it out"
        )


def export_run(options: Options, folder: RunFolder) -> None:
    """Loads the student, exports it, prints what came out."""
    folder.recipe()  # a folder that is no run is said at once, and so is a round that is none
    last_round, which = meant_round(folder, options.round)
    path = Path(options.out).expanduser() if options.out is not None else run_path(folder, options)
    console = Console()
    load_libraries(console, path)
    from heal.run.student import load_student

    with console.step("student") as line:
        student = load_student(folder, resolve_device(options.device), last_round)
        rank, last = student.accumulator.history_rank, student.rounds[-1]
        line.result(f"{student.recipe.model.name} after round {last + 1}, rank {rank}")
    console.say(f"which      {which}")
    with console.step("export") as line:
        with memory_told("while exporting", "set device=cpu"):
            written = write_student(student, path, options)
        line.result(f"written, loaded again and compared with the student: {written.agreement}")
    console.warn(*written.notices)
    kind = f"adapter of rank {written.rank}" if written.rank else "merged model"
    console.say(f"{kind:<10} {written.path} ({written.bytes / 1e6:.1f} MB)")
    if written.lost is not None:
        console.say(f"truncated  relative Frobenius error of the update {written.lost:.2e}")
    if written.facts.kept is not None:
        console.say(f"rounded    {written.facts.kept}")
    say_how_to_load(console, written.path, options.format, student.model)


def write_student(student: "Student", path: Path, options: Options) -> "Export":
    """The student as `format=` says, verified."""
    import torch

    from heal.export.adapter import export_adapter
    from heal.export.exportable import Settings
    from heal.export.llama_cpp.export import export_gguf, export_gguf_adapter
    from heal.export.merged import export_merged

    dtype = None if options.dtype == "auto" else getattr(torch, options.dtype)
    settings = Settings(options.gate, options.rank, dtype, options.max_kl, options.base)
    if options.format == "gguf":
        return export_gguf(student, path, settings, options.quant)
    if options.format == "gguf-adapter":
        return export_gguf_adapter(student, path, settings)
    return (export_adapter if options.format == "adapter" else export_merged)(student, path, settings)


def export_steering_vector(options: Options, file: Path) -> None:
    """Loads the vector and its model, exports it, prints what came out."""
    path = Path(options.out).expanduser() if options.out is not None else vector_path(file, options)
    console = Console()
    load_libraries(console, path)
    from heal.export.llama_cpp.export import export_control_vector
    from heal.export.vector import check_additive, dose, export_vector
    from heal.steering.vector import SteeringVector

    vector = SteeringVector.load(file)
    check_additive(vector)
    c = dose(vector, options.c)
    config = model_of(options, file, vector)
    vector = replace(vector, model=config.name)
    model = load_model(console, config, options.device)
    if options.format == "gguf":
        file = export_control_vector(vector, model, config, path, c, options.base)
        console.say(f"vector     {file} ({vector.method} of {vector.trait} at c = {c:g}, for llama.cpp)")
        console.say(f"more       {path / 'README.md'}")
        return
    with console.step("export") as line:
        with memory_told("while exporting", "set device=cpu"):
            bias = options.bias == "true"
            written = export_vector(vector, model, config, path, c, bias, max_kl=options.max_kl, named=options.base)
        line.result(f"written, loaded again and compared with the steered model: {written.facts.agreement}")
    if written.facts.base.notice:
        console.warn(written.facts.base.notice)
    say_approximation(console, written)
    carried = "as a bias" if options.bias == "true" else "without a bias"
    console.say(f"adapter    {written.path} ({vector.method} of {vector.trait} at c = {c:g}, {carried})")
    say_how_to_load(console, written.path, "adapter", model)


def model_of(options: Options, file: Path, vector: "SteeringVector") -> ModelConfig:
    """How the vector's model is loaded: as in the run around its file, but for what the words say."""
    from heal.export.vector import model_section

    words = {"name": options.model} | {name: getattr(options, name) for name in LOADING}
    return replace(model_section(file, vector), **{name: value for name, value in words.items() if value})


def load_model(console: Console, config: ModelConfig, device_name: str) -> "LanguageModel":
    """The model, and a line that says which it is and in which precision."""
    from heal.models.load import load_language_model
    from heal.models.precision import resolve_dtype

    with console.step("model") as line:
        device = resolve_device(device_name)
        dtype, why = resolve_dtype(config.dtype, device)
        model = load_language_model(config, dtype, device)
        line.result(f"{config.name} in {str(dtype).removeprefix('torch.')} on {device} ({why})")
    console.warn(*model.notices)
    return model


def say_approximation(console: Console, written: "VectorExport") -> None:
    """How constant the gates of a rank-1 export are, and the KL that this costs; nothing for an exact one."""
    for layer, gate in written.facts.gates.items():
        console.say(
            f"gate       block {layer}, {gate.kind}: mean {gate.mean:.3f}, sd {gate.sd:.3f}, p5 {gate.p5:.3f}, "
            f"p95 {gate.p95:.3f}; at the first position {gate.first:.3f}"
        )
    for name, kl in (("adapter", written.facts.kl), ("base", written.facts.steering_kl)):
        if kl is not None:
            console.say(f"KL         steered to {name}: p50 {kl.p50:.2e}, p95 {kl.p95:.2e} nats per token")


def load_libraries(console: Console, path: Path) -> None:
    """Loads what an export needs, and refuses a `path` that holds something else before any model is loaded."""
    console.say("loading the libraries ...")
    quiet_libraries()
    from heal.export.folder import check_place

    check_place(path)


def run_path(folder: RunFolder, options: Options) -> Path:
    """FOLDER/export/adapter or model, and what was asked for beyond that: adapter-round1-rank32."""
    gate = None if options.gate == 1 else f"{options.gate:g}"
    dtype = next((name for name, usual in ((options.dtype, "auto"), (options.quant, "f16")) if name != usual), None)
    beyond = {
        "round": options.round,
        "gate": gate,
        "rank": options.rank,
        "": dtype,
    }
    parts = [options.format] + [f"{name}{value}" for name, value in beyond.items() if value is not None]
    return folder.path / "export" / "-".join(parts)


def vector_path(file: Path, options: Options) -> Path:
    """NAME-adapter beside the vector, and what was asked for beyond that: vector-adapter-c0.5-rank1."""
    parts = [f"{file.stem}-{options.format}"]
    parts += [] if options.c is None else [f"c{options.c:g}"]
    parts += ["rank1"] if options.bias == "false" else []
    return file.with_name("-".join(parts))


def say_how_to_load(console: Console, path: Path, kind: str, model: "LanguageModel") -> None:
    """One line of Python, and where the model card is."""
    from heal.models.checkpoint import loading_class, location
    from heal.models.four_bit import as_code

    loader = loading_class(model.model)
    bits = f", {as_code(model.model.dtype, 'transformers.')}" if model.config.load_4bit else ""
    load = f"transformers.{loader}.from_pretrained({str(path)!r})"
    if kind == "adapter" and loader == "AutoModelForCausalLM" and model.config.name != "embedded":
        load = f"peft.AutoPeftModelForCausalLM.from_pretrained({str(path)!r}{bits})"
    elif kind == "adapter":
        base = f"transformers.{loader}.from_pretrained({location(model.config)!r}{bits})"
        load = f"peft.PeftModel.from_pretrained({base}, {str(path)!r})"
    if not kind.startswith("gguf"):
        console.say(f"load it    {load}")
    console.say(f"more       {path / 'README.md'}")
