"""Finds the doses at which interventions cost the same KL."""

from collections.abc import Sequence

from heal.guard import CONTINUES, command
from heal.options import options_help
from heal.run.open import opened
from heal.studies.interventions.request import KIND, SHORT_HELP, Study, interventions, read_study, signs

USAGE = "heal calibrate [model=...] [trait=...] [method=a,b] [signs=both] [target_kl=1.0] [key=value ...]"
PURPOSE = f"""Finds the coefficient at which each intervention spends the same KL on base, towards either persona, with
an audit on held-out prompts and the KL of the personas' own prompts for comparison. Writes doses.md, .csv and .png to
run.root/run.name; heal survival and heal interventions, given the same words, continue from there. The same command
again continues.
Short words: {SHORT_HELP};
all other keys are those of heal train."""


def main(words: Sequence[str]) -> None:
    """`heal calibrate`."""
    command(words, lambda: options_help(Study, USAGE, PURPOSE), calibrate, CONTINUES, several=True)


def calibrate(words: Sequence[str]) -> None:
    """Calibrates and prints the table and where it is."""
    recipe, options = read_study(Study, words)
    chosen = interventions(options.method)
    with opened(recipe, KIND, [choice.name for choice in chosen if choice.path is None]) as session:
        from heal.run.files import write_files
        from heal.studies.interventions.dose_table import figure, history_csv, markdown
        from heal.studies.interventions.doses import dose_all, prompted

        dosed = dose_all(session, chosen, signs(options.signs))
        prompts = prompted(session, signs(options.signs))
        text = markdown(dosed, prompts)
        files = {
            "doses.md": text.encode(),
            "doses.csv": history_csv(dosed, prompts).encode(),
            "doses.png": figure(dosed, prompts),
        }
        print(f"\n{text}\n{write_files(session.folder.path, files)}")
