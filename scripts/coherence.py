"""Which coherence signals notice damage on a model: `python scripts/coherence.py [model.name=...] [out=FOLDER]`."""

import csv
import io
import sys
from contextlib import nullcontext
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from heal.app import bare_model  # noqa: E402
from heal.console import Console  # noqa: E402
from heal.guard import command  # noqa: E402
from heal.options import output_path  # noqa: E402
from heal.recipe import load_recipe, main_words  # noqa: E402

USAGE = "usage: python scripts/coherence.py [out=FOLDER] [model.name=...] [trait=...] [key=value ...]"
PURPOSE = """Plants damage of growing size in base's answers (loops, word salad, another language, cut off) and in its
weights (noise), measures every coherence signal, and writes coherence.md and coherence.csv to FOLDER (default:
coherence): which signal notices what, at which size. Keys are those of heal/train.py; `evaluation.` ones matter."""


def main() -> None:
    """Reads the words, plants, measures, says where it is."""
    words = main_words()
    given = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    out = output_path(["coherence", *given][-1], folder=True)
    recipe = load_recipe([word for word in words if not word.startswith("out=")])
    console, settings = Console(), recipe.evaluation
    model, trait, _ = bare_model(recipe, console)
    from heal.evaluation.evaluate import evaluate
    from heal.evaluation.neutral import NeutralTexts
    from heal.evaluation.probe import choose_probe
    from heal.evaluation.subject import Subject
    from heal.evaluation.verdict import Floors
    from heal.measuring import held_out_prompts
    from heal.run.files import write_files
    from heal.studies.planted_damage.sensitivity import damages, findings, plant, table

    prompts = held_out_prompts(trait, settings)
    texts = NeutralTexts(model, recipe.model.system, settings.neutral_texts)
    with console.step("base") as shown:
        probe = choose_probe(model, texts.rows(), nullcontext)
        subject = Subject(
            stage="base",
            language_model=model,
            trait=trait,
            gates=nullcontext,
            base=nullcontext,
            system=recipe.model.system,
            neutral=recipe.model.system,
            max_repetition=recipe.filter.max_repetition,
            questions=settings.questions,
            probe=probe.format,
            neutral_texts=texts,
        )
        base = evaluate(subject, prompts, settings.tokens, shown.progress)
        shown.found(f"{len(prompts)} answers; probe format {probe.format.name} (mass {probe.mass:.2f})")
    found, planned = [], damages()
    floors, seed = Floors.of(settings), recipe.run.seed
    found += findings("none", 0.0, base, base, floors, settings.resamples, seed)
    with console.step("damage") as shown:
        for done, (kind, size, result) in enumerate(plant(subject, base, prompts, settings.tokens, seed), start=1):
            found += findings(kind, size, result, base, floors, settings.resamples, seed)
            shown.progress(done, len(planned))
        shown.found(f"{len(planned)} kinds and sizes")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0].row()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(entry.row() for entry in found)
    paths = write_files(out, {"coherence.md": table(found).encode(), "coherence.csv": text.getvalue().encode()})
    print(table(found))
    print("* noticed: the interval of the difference lies on the bad side of 0; bold: past the recipe's limit")
    print(paths)


if __name__ == "__main__":
    command(main_words(), lambda: f"{USAGE}\n\n{PURPOSE}", main)
