"""Times each piece of a round against its plain counterpart."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from heal.config import key
from heal.environment import quiet_libraries, usable_cores
from heal.guard import command
from heal.options import options_help, read_options

PIECES = ("heal", "barrier", "reference", "generate", "extract", "calibrate", "history", "round")
USAGE = "heal bench [PIECE ...] [--json] [key=value ...]"
PURPOSE = f"""Times each piece of a round against its plain counterpart, in turn in one process, and prints one table:
seconds, tokens/s, peak memory, ratio (this over the baseline: below 1 is faster), and the fraction of the
arithmetic limit (counted FLOPs over a measured matmul rate). Pieces: {", ".join(PIECES)}; all of them when
none is named. On a GPU two random-weight models of published shapes are timed as well, in bfloat16.
docs/performance.md says what was measured, and where."""


@dataclass
class Options:
    recipe: str = key("kl_rev_rmse", "recipe whose sizes are used")
    trait: str = key("love", "trait whose prompts are used")
    device: str = key("auto", "auto, cpu, cuda, ...")
    threads: int = key(0, "CPU threads; 0: one for each core that the process may use", 0, 4096)


def main(words: Sequence[str]) -> None:
    """`heal bench`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), bench)


def bench(words: Sequence[str]) -> None:
    """Times the pieces and prints the table or the JSON."""
    chosen = [word for word in words if word in PIECES]
    options = read_options(Options, [word for word in words if word not in (*PIECES, "--json")])
    quiet_libraries()
    from heal.studies.bench import run

    rows = run.bench(
        chosen or list(PIECES),
        options.recipe,
        options.trait,
        options.device,
        options.threads or usable_cores(),
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if "--json" in words:
        print(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1))
    else:
        run.print_rows(rows)
