"""The report's page: one self-contained HTML file.

Model and user text is untrusted: the template escapes everything, and the page's own policy forbids
the network and every script and style but the two whose hash it names.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from heal.evaluation.signal import TRAIT, Signal, described, signals
from heal.evaluation.stats import Estimate
from heal.report import numbers
from heal.report.completions import samples
from heal.report.headline import afterwards, commands, headline
from heal.report.results import Answer, Results, Round
from heal.report.signals import moved
from heal.report.tables import columns, folded, margin_cell, prominent, round_table, side_effects, stage_rows, ways
from heal.report.words import audits, glossary, remarks, settings

HERE = Path(__file__).resolve().parent
STAGES = ("base", "prompted", "steered", "healed")

# What each figure shows: alternative text and caption.
FIGURES = {
    "trajectory": (
        "Trait against coherence margin: base, prompted, and each round's way over steered to healed.",
        "Which round to use: trait against coherence margin. Each round starts from the student before it (base in "
        "round 1): steering moves it along the dotted line to the hollow mark, healing along the arrow to the filled "
        "one, which is named after the signal that binds its margin (1 as at base, 0 at its limit; shaded: past it). "
        "Right is more of the trait; the ring is the best round. Thin lines are 95 % intervals of the trait.",
    ),
    "signals": (
        "The trait and every signal with a limit by round, steered and healed, with base and prompted for comparison.",
        "What decides a verdict: the trait, and every signal with a limit, by round with 95 % intervals. Base stands "
        "at the left of the healed line; the green band is base under the positive persona as system prompt; past its "
        "limit a panel is shaded.",
    ),
    "side-effects": (
        "Everything else that was measured and moved, by round, steered and healed, with base and prompted.",
        "What else moved, by round, drawn as above; signals that are not valid for this model are left out.",
    ),
    "calibration": (
        "Per-token KL against the steering coefficient, with the target and c*, for each round.",
        "The search for the dose: KL between the model with and without the vector, per token of the steered paths. "
        "The star is c*; the hollow mark is the same 95th percentile on prompts that the search did not see.",
    ),
    "training": (
        "Cross-entropy, divergence and the fraction of completions whose barrier is on, over the rounds.",
        "Healing. Thin lines are single steps, thick ones the mean of an epoch, hollow marks the held-out completions. "
        "The barrier acts on a completion whose divergence D is above tau (dashed).",
    ),
}


@dataclass(frozen=True)
class Figure:
    """A figure as the page shows it: its number, its PNG as a URI, one for a telephone or "", and its texts."""

    number: int
    uri: str
    narrow: str
    alternative: str
    caption: str


def render(results: Results, figures: dict[str, bytes], narrow: Mapping[str, bytes] | None = None) -> bytes:
    """The whole page, UTF-8.

    Args:
        results: the run.
        figures: PNG bytes by name, as `figures.draw` gives them.
        narrow: the same for a telephone; None: there the others are shown smaller.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"dash": numbers.dash, "duration": numbers.duration, "notes": notes}
    environment.filters |= {"number": numbers.number, "percent": numbers.percent}
    style, script = (own_text(name) for name in ("style.css", "page.js"))
    reasons = {reason for finished in results.rounds for row in finished.completions for reason in row.dropped}
    (vary, still), stages = folded(results), stage_rows(results)
    html = environment.get_template("template.html").render(
        policy=policy(style, script),
        style=style,
        script=script,
        results=results,
        recipe=results.recipe,
        trait=results.facts.trait,
        shown_round=results.shown,
        headline=headline(results),
        afterwards=afterwards(results),
        commands=commands(results),
        comparison=comparison(results),
        remarks=remarks(results),
        audits=audits(results),
        settings=settings(results),
        glossary=glossary(results),
        columns=vary,
        constant=still,
        side_effects=side_effects(results),
        stages=stages,
        hidden_stages=sum(not row.shown for row in stages),
        at_once=prominent(results),
        margin=lambda row: margin_cell(results, row),
        ways=ways(results),
        rounds=round_table(results),
        best=results.best,
        reasons=sorted(reasons),
        samples=[samples(finished) for finished in results.rounds],
        answers=[
            (finished.number, finished is results.shown, answers(results, finished)) for finished in results.rounds
        ],
        figures=_figures(figures, narrow or {}),
        unmoved=still_signals(results),
        interval=numbers.interval,
    )
    return html.encode("utf-8", "replace")  # a lone surrogate in model text has no UTF-8


def still_signals(results: Results) -> list[tuple[Signal, Estimate]]:
    """What no figure draws because it never moved, with its value at base."""
    return [(signal, results.base[signal.name]) for signal in described(results.base) if not moved(results, signal)]


def _figures(figures: Mapping[str, bytes], narrow: Mapping[str, bytes]) -> dict[str, Figure]:
    """Each figure by name, in the order of the page."""
    shown = [name for name in FIGURES if name in figures]
    return {
        name: Figure(number, data_uri(figures[name]), data_uri(narrow[name]) if name in narrow else "", *FIGURES[name])
        for number, name in enumerate(shown, start=1)
    }


def own_text(name: str) -> Markup:
    """A file of this package, put into the page as it stands."""
    return Markup((HERE / name).read_text(encoding="utf-8").strip())


def policy(style: str, script: str) -> str:
    """The page's Content-Security-Policy: nothing from anywhere but the figures and the two inline texts."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}'; "
        f"script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def data_uri(png: bytes) -> str:
    """A PNG as a URI that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def comparison(results: Results) -> Markup:
    """The trait at the other stages, in one sentence."""
    last = results.shown
    (trait,) = (column for column in columns(results) if column.signal.name == TRAIT)
    steered = Markup("")
    if last.steered is not None:
        steered = Markup("steered at c* (round {}) {}; ").format(last.number, trait.whole(last.steered))
    return Markup(
        "The persona log-ratio itself, in nats/token: base {base}; base prompted with the positive persona {prompted}; "
        "{steered}healed (round {number}) {healed}."
    ).format(
        base=trait.whole(results.base),
        prompted=trait.whole(results.prompted),
        steered=steered,
        number=last.number,
        healed=trait.whole(last.healed),
    )


def answers(results: Results, finished: Round) -> list[tuple[str, list[tuple[str, Answer | None]]]]:
    """The answers of a round by prompt: base, prompted, steered, healed side by side; None: not on disk."""
    by_stage = finished.answers | {"prompted": results.prompted_answers}
    stages = [stage for stage in STAGES if stage != "steered" or finished.steered is not None]
    rows = []
    for place, base in enumerate(by_stage.get("base", [])):
        said = [(stage, by_stage.get(stage, [])) for stage in stages]
        rows.append((base.prompt, [(stage, rest[place] if place < len(rest) else None) for stage, rest in said]))
    return rows


def notes(answer: Answer) -> Markup:
    """What stands under an answer: its trait, and what is in the headline; of a fraction only what is bad."""
    shown = [signal for name, signal in signals().items() if name in answer.signals]
    texts = []
    for signal in shown:
        value, is_trait = answer.signals[signal.name], signal.role == "trait"
        if not (is_trait or signal.headline):
            continue
        if signal.unit == "share":
            bad = 0 if signal.better == "higher" else 1
            texts += [Markup("{}{}").format("" if bad else "not ", signal.term)] * (value == bad)
        else:
            number = numbers.number(value, signal.digits, is_trait, "no tokens to score")
            texts.append(Markup("{} {}").format(signal.term, number))
    return Markup(", ").join(texts)
