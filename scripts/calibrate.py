"""The doses of interventions at equal KL: `python scripts/calibrate.py trait=love method=mean_diff,pca`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from heal.app import opened  # noqa: E402
from heal.guard import CONTINUES, command  # noqa: E402
from heal.options import options_help  # noqa: E402
from heal.recipe import main_words  # noqa: E402
from heal.studies.interventions.asked import KIND, SHORT_HELP, Study, interventions, read_study, signs  # noqa: E402

USAGE = "python scripts/calibrate.py [model=...] [trait=...] [method=a,b] [signs=both] [target_kl=1.0] [key=value ...]"
PURPOSE = f"""Finds the coefficient at which each intervention spends the same KL on base, towards either persona, with
an audit on held-out prompts and the KL of the personas' own prompts beside it. Writes doses.md, .csv and .png to
run.root/run.name, which scripts/survival.py and scripts/interventions.py continue from when they are given the same
words. The same command again continues.
Short words: {SHORT_HELP};
all other keys are those of heal/train.py."""


def main() -> None:
    """Reads the words, calibrates, says where it is."""
    recipe, options = read_study(Study, main_words())
    asked = interventions(options.method)
    with opened(recipe, KIND, [each.name for each in asked if each.path is None]) as session:
        from heal.run.files import write_files
        from heal.studies.interventions.dose_table import figure, history_csv, markdown
        from heal.studies.interventions.doses import dose_all, prompted

        dosed = dose_all(session, asked, signs(options.signs))
        prompts = prompted(session, signs(options.signs))
        text = markdown(dosed, prompts)
        files = {
            "doses.md": text.encode(),
            "doses.csv": history_csv(dosed, prompts).encode(),
            "doses.png": figure(dosed, prompts),
        }
        print(f"\n{text}\n{write_files(session.folder.path, files)}")


if __name__ == "__main__":
    command(main_words(), lambda: options_help(Study, USAGE, PURPOSE), main, CONTINUES)
