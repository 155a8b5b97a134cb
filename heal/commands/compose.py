"""Adds up several finished students, each times a weight, and exports the sum."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heal.config import key
from heal.console import Console
from heal.errors import UserError
from heal.guard import command
from heal.memory import memory_told
from heal.options import options_help, output_path, read_options, resolve_device

if TYPE_CHECKING:
    from heal.export.compose import Composed, Part
    from heal.export.composition import Composition, Measured
    from heal.export.folder import Export

USAGE = "heal compose run=A,B[,...] [weights=1,0.5] [key=value ...]"
PURPOSE = """Writes the sum of several students' updates, each times a weight, as one ordinary adapter or model: exact,
loaded again and compared. A negative weight takes an update away. The sum is then measured on the held-out prompts of
each run's trait, against the base that the run measured. Students of one base, on the same layers."""
PLACE = Path("composed")  # where exports go that are given no other


@dataclass
class Options:
    run: str = key("", "the runs' folders, separated by commas")
    weights: str | None = key(None, "of their updates, separated by commas, in the runs' order; none: 1 each")
    round: str | None = key(
        None, "the last round of each to include: counted from 1, best or last; none: what its export.round says"
    )
    format: Literal["adapter", "model"] = key("adapter", "a PEFT LoRA folder, or a whole model with the sum merged")
    rank: int | None = key(None, "truncate the adapter to this rank by SVD; none: exact", 1)
    max_kl: float = key(
        0.1, "nats per token at p95 that the export's KL from the sum may have; above, it is refused", 0
    )
    measure: Literal["true", "false"] = key("true", "measure the sum on each run's held-out prompts")
    out: str | None = key(None, "folder to write; none: composed/ and the traits with their weights")
    device: str = key("auto", "auto, cpu, cuda, cuda:1 ...")


def main(words: Sequence[str]) -> None:
    """`heal compose`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), compose)


def compose(words: Sequence[str]) -> None:
    """Loads, adds up, measures and exports."""
    options = read_options(Options, words)
    weights = weights_of(options)
    if options.format == "model" and options.rank is not None:
        raise UserError(f"rank={options.rank}: a merged model has no rank; use format=adapter, or leave rank out")
    if options.out is not None:
        output_path(options.out, folder=True)
    from heal.run.folder import RunFolder

    folders = [RunFolder(Path(path).expanduser()) for path in weights]
    for folder in folders:
        folder.recipe()  # a folder that is no run is said before the libraries are loaded
    console = Console()
    console.say("loading the libraries ...")
    from heal.environment import quiet_libraries

    quiet_libraries()
    from heal.export import compose as composing
    from heal.export.composition import Composition
    from heal.export.folder import check_place

    parts = [
        composing.Part.of(folder, weight, options.round)
        for folder, weight in zip(folders, weights.values(), strict=True)
    ]
    composing.refuse_unlike(parts)
    path = Path(options.out).expanduser() if options.out is not None else default_place(composing.sum_name(parts))
    check_place(path)
    console.warn(*composing.other_dtypes(parts))
    with console.step("sum") as line:
        student = composing.compose(parts, resolve_device(options.device))
        said = ", ".join(f"{part.weight:+g} x {part.run} (rank {part.rank})" for part in student.ingredients)
        line.result(f"{student.trait.name} on {student.config.name}: {said}")
    measured = tuple(measure(console, student, part) for part in parts) if options.measure == "true" else ()
    made = Composition(student.ingredients, measured)
    with console.step("export") as line:
        with memory_told("while exporting", "set device=cpu"):
            written = write(student, made, path, options)
        line.result(f"written, loaded again and compared with the sum: {written.agreement}")
    console.warn(*written.notices)
    console.say(f"{options.format:<10} {written.path} ({written.bytes / 1e6:.1f} MB)")
    console.say(f"more       {written.path / 'README.md'}")


def weights_of(options: Options) -> dict[str, float]:
    """The weight of each run by its folder, in the order of the words.

    Raises:
        UserError: fewer than two runs, one of them twice, no number, 0, or not one weight for each run.
    """
    runs = [path.strip() for path in options.run.split(",") if path.strip()]
    if len(runs) < 2:
        raise UserError(f"run={options.run}: at least two runs, separated by commas; heal export takes one, with gate=")
    places = [Path(path).expanduser().resolve() for path in runs]
    if twice := [path for path, place in zip(runs, places, strict=True) if places.count(place) > 1]:
        raise UserError(f"run={options.run}: {twice[0]} is there twice; give it one weight")
    texts = ["1"] * len(runs) if options.weights is None else options.weights.split(",")
    try:
        weights = [float(text) for text in texts]
    except ValueError as error:
        raise UserError(f"weights={options.weights}: expected numbers, separated by commas") from error
    if len(weights) != len(runs):
        raise UserError(f"weights={options.weights}: {len(weights)} for {len(runs)} runs; one for each, in their order")
    if not all(math.isfinite(weight) and weight for weight in weights):
        raise UserError(f"weights={options.weights}: expected finite numbers other than 0; leave a run out instead")
    return dict(zip(runs, weights, strict=True))


def default_place(name: str) -> Path:
    """The folder of an export that is given no other."""
    return PLACE / re.sub(r"[^A-Za-z0-9_.+-]+", "x", name)


def measure(console: Console, student: "Composed", part: "Part") -> "Measured":
    """The sum on the part's trait, and a line of what came out."""
    from heal.evaluation.signal import TRAIT
    from heal.export import compose as composing

    with console.step("measure") as line:
        found = composing.measure(student, part, line.progress)
        signals = [("alone", found.alone.get(TRAIT)), ("composed", found.composed.get(TRAIT))]
        shifts = ", ".join(f"{name} {one.delta:+.3f}" for name, one in signals if one is not None)
        line.result(f"{found.trait}: persona log-ratio over base {shifts} nats/token; {found.drift.said}")
    return found


def write(student: "Composed", made: "Composition", path: Path, options: Options) -> "Export":
    """The sum as `format=` says, verified; its record says what it is made of."""
    from heal.export.adapter import write_adapter
    from heal.export.composed_card import composed_card
    from heal.export.exportable import Settings
    from heal.export.folder import read_record, write_record
    from heal.export.merged import write_merged

    card = partial(composed_card, student, made)
    settings = Settings(rank=options.rank, max_kl=options.max_kl)
    if options.format == "adapter":
        written = write_adapter(student, path, card, settings, ())
    else:
        written = write_merged(student, path, card, settings, ())
    facts = {name: value for name, value in read_record(path).items() if name != "files"}
    write_record(path, **facts, composition=asdict(made))
    return written
