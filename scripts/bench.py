"""How fast heal is, piece by piece, against the plain way: `python scripts/bench.py [stage ...] [--json]`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from heal.config import key  # noqa: E402
from heal.environment import quiet_libraries, usable_cores  # noqa: E402
from heal.guard import command  # noqa: E402
from heal.options import options_help, read_options  # noqa: E402
from heal.recipe import main_words  # noqa: E402

STAGES = ("heal", "barrier", "reference", "generate", "extract", "calibrate", "history", "round")
USAGE = "python scripts/bench.py [STAGE ...] [--json] [key=value ...]"
PURPOSE = f"""Times each piece of a round against its plain counterpart, in turn in one process, and prints one table:
seconds, tokens/s, peak memory, ratio (this over the baseline: below 1 is faster), and the share of the
arithmetic limit (counted FLOPs over a measured matmul rate). Stages: {", ".join(STAGES)}; all of them when
none is named. On a GPU two random-weight models of published shapes are timed as well, in bfloat16.
docs/performance.md says what was measured, and where."""


@dataclass
class Options:
    recipe: str = key("kl_rev_rmse", "recipe whose sizes are used")
    trait: str = key("love", "trait whose prompts are used")
    device: str = key("auto", "auto, cpu, cuda, ...")
    threads: int = key(0, "CPU threads; 0: one for each core that the process may use", 0)


def main() -> None:
    """Reads the words, runs the stages, prints the table or the JSON."""
    words = main_words()
    as_json = "--json" in words
    named = [word for word in words if word in STAGES]
    options = read_options(Options, [word for word in words if word not in (*STAGES, "--json")])
    quiet_libraries()
    from heal.studies.bench.run import bench, print_rows

    rows = bench(
        named or list(STAGES),
        options.recipe,
        options.trait,
        options.device,
        options.threads or usable_cores(),
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if as_json:
        print(json.dumps({"rows": [row.to_json() for row in rows]}, indent=1))
    else:
        print_rows(rows)


if __name__ == "__main__":
    command(main_words(), lambda: options_help(Options, USAGE, PURPOSE), main)
