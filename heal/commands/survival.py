"""Measures for how many tokens a model under intervention can still answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from heal.config import key
from heal.counts import refuse_more_than
from heal.guard import CONTINUES, command
from heal.options import options_help
from heal.run.open import opened
from heal.studies.interventions.request import KIND, SHORT_HELP, Study, interventions, multiples, read_study, signs
from heal.traits import one_trait_of

USAGE = "heal survival [model=...] [trait=...] [method=a,b] [tokens=128] [key=value ...]"
PURPOSE = f"""Calibrates every intervention at equal KL (as heal calibrate does, whose doses it reuses), then rolls out
held-out prompts at multiples of the dose: KL token by token, and a yes/no probe at forks along the rollout, whose first
failure is its death. Writes a table, a CSV and three figures for each intervention to run.root/run.name/survival. The
same command again continues.
Short words: {SHORT_HELP};
all other keys are those of heal train."""


@dataclass
class Options(Study):
    method: str = key("mean_diff", "interventions, as for heal calibrate, separated by commas")
    tokens: int = key(128, "tokens of a rollout", 1)
    forks: int = key(8, "how often a rollout is interrupted by the probe, evenly spread", 1)
    prompts: int = key(8, "held-out prompts", 1)
    alphas: str = key("0,0.25,0.5,0.75,1,1.5,2,4", "multiples of the dose, separated by commas")


def main(words: Sequence[str]) -> None:
    """`heal survival`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), survival, CONTINUES, several=True)


def survival(words: Sequence[str]) -> None:
    """Calibrates, rolls out, and prints the tables and where they are."""
    recipe, options = read_study(Options, words)
    chosen = interventions(options.method)
    alphas = multiples(options.alphas)
    refuse_more_than("prompts", options.prompts, one_trait_of(recipe, "heal survival"), held_out=True)
    with opened(recipe, KIND, [choice.name for choice in chosen if choice.path is None]) as session:
        from heal.run.files import write_files
        from heal.studies.interventions.doses import dose_all
        from heal.studies.survival.study import Setting, output, prepare, results, survive

        dosed = dose_all(session, chosen, signs(options.signs))
        session.console.title("base")
        probe, doubt = prepare(session)
        setting = Setting(options.prompts, options.tokens, options.forks, alphas)
        written: list[str] = []
        for intervention in dosed:
            session.console.title(intervention.label)
            rollouts = survive(session, intervention, probe, setting)
            files = results(intervention, rollouts, doubt)
            written.append(write_files(output(session, intervention), files))
            print(files["survival.md"].decode())
        print("\n".join(written))
