"""Compares several runs in one table, page and figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from heal.config import key
from heal.errors import UserError
from heal.guard import command
from heal.options import options_help, output_path, read_options

USAGE = "heal compare RUN|FILE.jsonl ... [by=recipe,trait] [against=ARM] [out=FOLDER]"
PURPOSE = """Groups finished runs into arms, one run a seed, and writes comparison.md, .csv, .html and .png to FOLDER:
trait, coherence, coh_cost, rounds to saturation, last coherent round and verdict, with intervals over seeds and
prompts, and the arms' trajectories from round to round; and fronts.png: every round of every run, the trait against
drift and margin, and the arms at equal drift and at equal trait. A table has each arm at its best rounds, however many
rounds its runs went. Differences are tested against one arm. runs.jsonl holds every item that the tables rest on; it
can be given in place of the runs' folders."""


@dataclass
class Options:
    by: str = key("recipe,trait", "keys of the recipe that make an arm, separated by commas")
    against: str | None = key(None, "arm that the others are tested against, as the table names it; default: the first")
    out: str = key("comparison", "folder that is written")
    resamples: int = key(2000, "bootstrap resamples", 100)
    title: str = key("Comparison of runs", "title of the page")


def main(words: Sequence[str]) -> None:
    """`heal compare`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), compare)


def compare(words: Sequence[str]) -> None:
    """Compares the runs and prints the table and where everything is."""
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    paths = [Path(word) for word in words if word not in settings and not _is_log(Path(word))]
    options = read_options(Options, settings)
    if not paths:
        raise UserError("no runs given; name their folders, as in runs/kl_rev_rmse-love-embedded-s0")
    out = output_path(options.out, folder=True)
    from heal.report.canvas import png
    from heal.report.plot import WIDE
    from heal.run.files import write_files
    from heal.studies.comparison.arms import Settings, group, lines, untrained
    from heal.studies.comparison.best import best_lines
    from heal.studies.comparison.figure import figure
    from heal.studies.comparison.fronts_figure import fronts, fronts_figure
    from heal.studies.comparison.runs import read_runs, records
    from heal.studies.comparison.show import markdown, page, rounds_csv

    runs = read_runs(paths)
    trained = group(runs, options.by.split(","))
    if options.against:
        if options.against not in [arm.name for arm in trained]:
            raise UserError(f"against={options.against}: no such arm; there are {', '.join(a.name for a in trained)}")
        trained.sort(key=lambda arm: arm.name != options.against)
    arms = [*untrained(trained), *trained]
    bootstrap = Settings(options.resamples)
    table, best = lines(arms, bootstrap), best_lines(trained, bootstrap)
    drawn = partial(fronts_figure, fronts(arms, bootstrap)), partial(figure, arms, bootstrap)
    files = {
        "comparison.md": markdown(table, best).encode(),
        "comparison.csv": rounds_csv(arms, bootstrap).encode(),
        "comparison.png": png(drawn[1](WIDE)),
        "fronts.png": png(drawn[0](WIDE)),
        "comparison.html": page(table, best, drawn, options.title).encode(),
        "runs.jsonl": records(runs),
    }
    print(f"{markdown(table, best)}\n{write_files(out, files)}")


def _is_log(path: Path) -> bool:
    """Whether that is the console of a run, which a sweep puts beside its folder and a pattern catches with it."""
    return path.suffix == ".log" and path.with_suffix("").is_dir()
