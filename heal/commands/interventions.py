"""Compares interventions at equal KL in one table: trait, side effects, surgical informedness."""

from collections.abc import Sequence

from heal.guard import CONTINUES, command
from heal.options import options_help
from heal.run.open import opened
from heal.studies.interventions.request import KIND, SHORT_HELP, Study, interventions, read_study, signs

USAGE = "heal interventions [model=...] [trait=...] [method=a,b] [signs=both] [key=value ...]"
PURPOSE = f"""Calibrates every intervention at equal KL (as heal calibrate does, whose doses it reuses), then measures
each at alpha = 1 towards either persona, and the personas' own prompts, on the same items: trait, target and off-target
shifts, surgical informedness, coherence. Writes interventions.md, .csv and .png to run.root/run.name. The same command
again continues.
Short words: {SHORT_HELP};
all other keys are those of heal train."""


def main(words: Sequence[str]) -> None:
    """`heal interventions`."""
    command(words, lambda: options_help(Study, USAGE, PURPOSE), compare, CONTINUES, several=True)


def compare(words: Sequence[str]) -> None:
    """Calibrates, measures, and prints the table and where it is."""
    recipe, options = read_study(Study, words)
    chosen = interventions(options.method)
    with opened(recipe, KIND, [choice.name for choice in chosen if choice.path is None]) as session:
        from heal.evaluation.validity import doubts
        from heal.run.files import write_files
        from heal.studies.interventions.compare import pairs, setting_of
        from heal.studies.interventions.doses import dose_all, prompted
        from heal.studies.interventions.effects import measure_all
        from heal.studies.interventions.show import figure, markdown, table_csv

        directions = signs(options.signs)
        against, measured = measure_all(session, dose_all(session, chosen, directions), prompted(session, directions))
        setting = setting_of(session, against.valid)
        compared = pairs(measured, against.base, setting)
        text = markdown(compared, setting, len(against.base.answers), doubts(against.validity))
        files = {
            "interventions.md": text.encode(),
            "interventions.csv": table_csv(compared).encode(),
            "interventions.png": figure(compared),
        }
        print(f"\n{text}\n{write_files(session.folder.path, files)}")
