"""Shows which coherence signals notice planted damage on a model."""

import csv
import io
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from heal.config import key
from heal.console import Console
from heal.counts import lowered_to, refuse_missing_prompts
from heal.guard import command
from heal.options import options_help, output_path, read_options, split_words
from heal.recipe import load_recipe, sized
from heal.run.open import open_model
from heal.traits import trait_of

if TYPE_CHECKING:
    from heal.run.step import A, Step
    from heal.studies.planted_damage.sensitivity import Finding

USAGE = "heal coherence [out=FOLDER] [model.name=...] [trait=...] [key=value ...]"
PURPOSE = """Plants damage of growing size in base's answers (loops, word salad, another language, cut off, answers
exchanged between prompts, one answer for all) and in its weights (noise), measures every coherence signal, and writes
coherence.md and coherence.csv to FOLDER: which signal notices what, at which size. Other keys are those of heal train;
the `evaluation.` ones matter."""


@dataclass
class Options:
    out: str = key("coherence", "folder that is written")


def main(words: Sequence[str]) -> None:
    """`heal coherence`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), coherence)


def coherence(words: Sequence[str]) -> None:
    """Plants, measures, and prints the table and where it is."""
    own, others = split_words(Options, words)
    out = output_path(read_options(Options, own).out, folder=True)
    recipe = sized(load_recipe(others))
    console, settings, seed = Console(), recipe.evaluation, recipe.run.seed
    for said in lowered_to(trait_of(recipe), recipe, ["evaluation.prompts"]):
        console.say(f"prompts    {said}")
    refuse_missing_prompts(recipe, trait_of(recipe), ["evaluation.prompts"])
    model, trait, _ = open_model(recipe, console)
    from heal.evaluation.signal import limits_of
    from heal.run.files import write_files
    from heal.steps.baseline import examination_of
    from heal.studies.planted_damage.sensitivity import damages, findings, plant, smallest, table

    def run(step: "Step[A]", at: Path) -> "A":
        with console.step(step.name) as line:
            artifact = step.compute(line.progress)
            line.result(step.finding(artifact))
        return artifact

    examination = examination_of(
        recipe,
        language_model=model,
        base=nullcontext,
        trait=trait,
        vignettes=(),
        run=run,
        at=out,
    )
    stage = examination.stage("base", examination.setup.base)
    subject, base = stage.subject, run(stage, out)
    judge = partial(findings, base=base, limits=limits_of(settings), resamples=settings.resamples, seed=seed)
    planned, noticed = damages(), judge("none", 0.0, base)
    with console.step("damage") as line:
        for done, (kind, size, result) in enumerate(plant(subject, base, seed), start=1):
            noticed += judge(kind, size, result)
            line.progress(done, len(planned))
        line.result(f"{len(planned)} kinds and sizes")
    text = f"{table(noticed)}\n{smallest(noticed)}"
    paths = write_files(out, {"coherence.md": text.encode(), "coherence.csv": rows_csv(noticed)})
    print(text)
    print("* noticed: the interval of the difference lies on the bad side of 0; bold: past the recipe's limit")
    print(paths)


def rows_csv(noticed: Sequence["Finding"]) -> bytes:
    """One line per damage, size and signal."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(noticed[0].row()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(finding.row() for finding in noticed)
    return text.getvalue().encode()
