"""For how long a steered model can still answer: `python scripts/survival.py trait=love method=mean_diff`."""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from heal.app import opened  # noqa: E402
from heal.config import key  # noqa: E402
from heal.guard import CONTINUES, command  # noqa: E402
from heal.options import options_help  # noqa: E402
from heal.recipe import main_words  # noqa: E402
from heal.studies.interventions.asked import KIND, SHORT_HELP, Study, interventions, multiples, read_study, signs  # noqa: E402

USAGE = "python scripts/survival.py [model=...] [trait=...] [method=a,b] [tokens=128] [key=value ...]"
PURPOSE = f"""Calibrates every intervention at equal KL (as scripts/calibrate.py, from whose doses it goes on), then
rolls out held-out prompts at multiples of the dose: KL token by token, and a yes/no probe at forks along the rollout,
whose first failure is its death. Writes a table, a CSV and three figures for each intervention to
run.root/run.name/survival. The same command again continues.
Short words: {SHORT_HELP};
all other keys are those of heal/train.py."""


@dataclass
class Options(Study):
    method: str = key("mean_diff", "interventions, as for scripts/calibrate.py, separated by commas")
    tokens: int = key(128, "tokens of a rollout", 1)
    forks: int = key(8, "how often a rollout is interrupted by the probe, evenly spread", 1)
    prompts: int = key(8, "held-out prompts", 1)
    alphas: str = key("0,0.25,0.5,0.75,1,1.5,2,4", "multiples of the dose, separated by commas")


def main() -> None:
    """Reads the words, calibrates, rolls out, says where it is."""
    recipe, options = read_study(Options, main_words())
    asked = interventions(options.method)
    alphas = multiples(options.alphas)
    with opened(recipe, KIND, [each.name for each in asked if each.path is None]) as session:
        from heal.run.files import write_files
        from heal.studies.interventions.doses import dose_all
        from heal.studies.survival.study import output, prepare, results, survive

        dosed = dose_all(session, asked, signs(options.signs))
        session.console.title("base")
        doubt = prepare(session)
        written: list[str] = []
        for each in dosed:
            session.console.title(each.label)
            found = survive(session, each, options.prompts, options.tokens, options.forks, alphas)
            files = results(each, found, doubt)
            written.append(write_files(output(session, each), files))
            print(files["survival.md"].decode())
        print("\n".join(written))


if __name__ == "__main__":
    command(main_words(), lambda: options_help(Options, USAGE, PURPOSE), main, CONTINUES)
