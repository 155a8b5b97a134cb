"""Every intervention at equal KL in one table: `python scripts/interventions.py trait=care_over_authority`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from heal.app import opened  # noqa: E402
from heal.guard import CONTINUES, command  # noqa: E402
from heal.options import options_help  # noqa: E402
from heal.recipe import main_words  # noqa: E402
from heal.studies.interventions.asked import KIND, SHORT_HELP, Study, interventions, read_study, signs  # noqa: E402

USAGE = "python scripts/interventions.py [model=...] [trait=...] [method=a,b] [signs=both] [key=value ...]"
PURPOSE = f"""Calibrates every intervention at equal KL (as scripts/calibrate.py, from whose doses it goes on), then
measures each at alpha = 1 towards either persona, and the personas' own prompts, on the same items: trait, target and
off-target shifts, surgical informedness, coherence. Writes interventions.md, .csv and .png to run.root/run.name. The
same command again continues.
Short words: {SHORT_HELP};
all other keys are those of heal/train.py."""


def main() -> None:
    """Reads the words, calibrates, measures, says where it is."""
    recipe, options = read_study(Study, main_words())
    asked = interventions(options.method)
    with opened(recipe, KIND, [each.name for each in asked if each.path is None]) as session:
        from heal.evaluation.validity import doubts, from_json
        from heal.records import read_json
        from heal.run.files import write_files
        from heal.studies.interventions.compare import pairs, setting_of
        from heal.studies.interventions.doses import dose_all, prompted
        from heal.studies.interventions.measure import measure_all
        from heal.studies.interventions.show import figure, markdown, table_csv

        chosen = signs(options.signs)
        against, measured = measure_all(session, dose_all(session, asked, chosen), prompted(session, chosen))
        setting = setting_of(session, against.valid)
        found = pairs(measured, against.base, setting)
        doubted = doubts(from_json(read_json(session.folder.baseline / "metrics.json")["validity"]))
        text = markdown(found, setting, len(against.base.answers), doubted)
        files = {
            "interventions.md": text.encode(),
            "interventions.csv": table_csv(found).encode(),
            "interventions.png": figure(found),
        }
        print(f"\n{text}\n{write_files(session.folder.path, files)}")


if __name__ == "__main__":
    command(main_words(), lambda: options_help(Study, USAGE, PURPOSE), main, CONTINUES)
