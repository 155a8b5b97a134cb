"""The report's page: one self-contained HTML file.

Model and user text is untrusted: the template escapes everything, and the page's own policy forbids
the network and every script and style but the two whose hash it names.
"""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from heal.evaluation.signal import TRAIT, Signal, described
from heal.evaluation.stats import Estimate
from heal.report import numbers
from heal.report.canvas import palette, svg
from heal.report.completions import samples
from heal.report.figures import draw
from heal.report.headline import afterwards, commands, headline
from heal.report.plot import NARROW, WIDE
from heal.report.reading import notes, reading
from heal.report.results import Results
from heal.report.signals import moved
from heal.report.tables import (
    columns,
    crosstalk,
    folded,
    margin_cell,
    places,
    prominent,
    round_table,
    side_effects,
    stage_rows,
    ways,
)
from heal.report.words import audits, glossary, remarks, settings

HERE = Path(__file__).resolve().parent

# What each figure shows: alternative text and caption.
FIGURES = {
    "trajectory": (
        "Trait against coherence margin: base, prompted, and each round's way over steered to healed.",
        "Which round to use: trait against coherence margin. Each round starts from the student before it (base in "
        "round 1): steering moves it along the dotted line to the hollow mark, healing along the arrow to the filled "
        "one, which is named after the signal that binds its margin where there is room (1 as at base, 0 at its limit; "
        "shaded: past it). Right is more of the trait; the ring is the best round. Thin lines are 95 % intervals of "
        "the trait.",
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
    "positions": (
        "KL of the healed student to base by position in a text, by round: mean and 95th percentile.",
        "Where in a text the student leaves base: KL(student ‖ base) per position, over stretches of tokens, of every "
        "other answer and every other kept completion. A rise, often in the upper tail alone, is where texts leave "
        "what base would write, as they do where a loop begins; fewer texts reach the later positions (n under the "
        "pointer).",
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
    """A figure as the page shows it: its number, its SVG for a page and for a telephone, and its caption."""

    number: int
    drawn: Markup
    caption: str


def render(results: Results) -> bytes:
    """The whole page, UTF-8."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"dash": numbers.dash, "duration": numbers.duration, "notes": notes}
    environment.filters |= {"number": numbers.number, "percent": numbers.percent}
    style, script = page_style(), own_text("page.js")
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
        crosstalk=crosstalk(results),
        places=places(results),
        rounds=round_table(results),
        best=results.best,
        reasons=sorted(reasons),
        doses=sorted({row.alpha for finished in results.rounds for row in finished.completions}),
        samples=samples(results.rounds),
        reading=reading(results),
        figures=_figures(results),
        unmoved=still_signals(results),
        interval=numbers.interval,
    )
    return html.encode("utf-8", "replace")  # a lone surrogate in model text has no UTF-8


def still_signals(results: Results) -> list[tuple[Signal, Estimate]]:
    """What no figure draws because it never moved, with its value at base."""
    return [(signal, results.base[signal.name]) for signal in described(results.base) if not moved(results, signal)]


def _figures(results: Results) -> dict[str, Figure]:
    """Each figure by name, in the order of the page."""
    wide, narrow = draw(results, WIDE), draw(results, NARROW)
    shown = [(name, *texts) for name, texts in FIGURES.items() if name in wide]
    return {
        name: Figure(number, svg(wide[name], says, "wide") + svg(narrow[name], says, "narrow"), caption)
        for number, (name, says, caption) in enumerate(shown, start=1)
    }


def page_style() -> Markup:
    """The style of this page and of others that show figures of a canvas."""
    return Markup("{}\n{}").format(Markup(palette()), own_text("style.css"))


def own_text(name: str) -> Markup:
    """A file of this package, put into the page as it stands."""
    return Markup((HERE / name).read_text(encoding="utf-8").strip())


def policy(style: str, script: str) -> str:
    """The page's Content-Security-Policy: nothing from anywhere but the two inline texts."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}'; "
        f"script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )


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
