"""Times each piece of a round against its plain counterpart."""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial

from heal.config import key
from heal.environment import quiet_libraries, usable_cores
from heal.guard import command
from heal.options import options_help, output_path, read_options
from heal.records import jsonl_bytes

PIECES = ("heal", "barrier", "reference", "generate", "extract", "calibrate", "history", "round", "processes")
USAGE = "heal bench [PIECE ...] [--json] [key=value ...]"
PURPOSE = f"""Times each piece of a round against its plain counterpart, in turn in one process, and prints each row of
a table as it is measured: seconds, ratio (this over the baseline: below 1 is faster), tokens/s, peak memory, and the
fraction of the nearer limit: the arithmetic one (counted FLOPs over a measured matmul rate) or memory's (bytes that
decoding reads over the bandwidth of a copy). Pieces: {", ".join(PIECES)}; all of them when none is named.
Models with random weights in published shapes (gemma-3-4b, qwen3-4b, qwen3-8b, llama-3.1-8b) are timed in bfloat16:
all of them on a GPU, those that shape= names anywhere. Healing is timed against trl's SFTTrainer, on a GPU with
Liger's kernels where liger-kernel is installed; generation against transformers' generate. docs/performance.md says
what was measured, and where. `processes` starts a round in two processes of one thread each, and in one."""


@dataclass
class Options:
    recipe: str = key("kl_rev_rmse", "recipe whose sizes are used")
    trait: str = key("love", "trait whose prompts are used")
    shape: str = key(
        "auto",
        "auto: the recipe's model and, on a GPU, every shape; none: that model alone; all, or names with commas: "
        "these shapes alone",
    )
    device: str = key("auto", "auto, cpu, cuda, ...")
    threads: int = key(0, "CPU threads; 0: one for each core that the process may use", 0, 4096)
    out: str | None = key(None, "file to write: each row as a line of JSON, as soon as it is measured")


def main(words: Sequence[str]) -> None:
    """`heal bench`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), bench)


def bench(words: Sequence[str]) -> None:
    """Times the pieces; prints the table as it grows, or the JSON at the end."""
    chosen = [word for word in words if word in PIECES]
    options = read_options(Options, [word for word in words if word not in (*PIECES, "--json")])
    out = None if options.out is None else output_path(options.out, folder=False)
    quiet_libraries()
    from heal.studies.bench import run
    from heal.studies.bench.table import Table

    as_json = "--json" in words
    say = partial(print, file=sys.stderr, flush=True)
    table = Table(say if as_json else partial(print, flush=True))
    rows = run.bench(
        chosen or list(PIECES),
        options.recipe,
        options.trait,
        options.device,
        options.threads or usable_cores(),
        say=say,
        shape=options.shape,
    )
    measured = []
    with ExitStack() as stack:
        file = None
        for row in rows:
            if out is not None and file is None:  # an earlier bench's rows stay until there is one
                out.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(out.open("wb"))
            measured.append(asdict(row))
            table.add(row)
            if file is not None:
                file.write(jsonl_bytes(measured[-1:]))
                file.flush()
    if as_json:
        print(json.dumps({"rows": measured}, indent=1))
