"""The report's page: one self-contained HTML file.

Model and user text is untrusted: the template escapes everything, and the page's own policy forbids
the network and every script and style but the two whose hash it names.
"""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from heal.evaluation.metrics import RoundMetrics, Summary
from heal.evaluation.signal import TRAIT, signals
from heal.report import numbers
from heal.report.completions import samples
from heal.report.headline import afterwards, commands, headline
from heal.report.results import Answer, Results, Round
from heal.report.tables import columns, round_table, side_effects, ways
from heal.report.words import audits, glossary, remarks, settings

HERE = Path(__file__).resolve().parent
STAGES = ("base", "prompted", "steered", "healed")

# What each figure shows: alternative text and caption.
FIGURES = {
    "trajectory": (
        "Trait against coherence: base, prompted, and each round's way over steered to healed.",
        "Trait against coherence, round by round. Each round starts from the student before it (base in round 1): "
        "steering moves it along the dotted line to the hollow mark, healing along the arrow to the filled one. "
        "Up and to the right is better. The coherence margin is that of the worst valid signal: 1 as at base, 0 at its "
        "limit. Thin crosses are 95 % intervals; the panels share the horizontal axis.",
    ),
    "signals": (
        "The trait and every signal of coherence by round, steered and healed, with base and prompted for comparison.",
        "The trait and every signal of coherence by round, each with its 95 % interval. Base stands at the left of the "
        "healed line; the green band is base under the positive persona as system prompt.",
    ),
    "side-effects": (
        "Everything else that was measured, by round, steered and healed, with base and prompted for comparison.",
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


def render(results: Results, figures: dict[str, bytes]) -> bytes:
    """The whole page, UTF-8.

    Args:
        results: the run.
        figures: PNG bytes by name, as `figures.draw` gives them.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"dash": numbers.dash, "duration": numbers.duration, "notes": notes}
    environment.filters |= {"number": numbers.number, "percent": numbers.percent}
    style, script = (own_text(name) for name in ("style.css", "page.js"))
    reasons = {reason for finished in results.rounds for row in finished.completions for reason in row.dropped}
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
        columns=columns(results),
        side_effects=side_effects(results),
        stages=stage_rows(results),
        ways=ways(results),
        rounds=round_table(results),
        best=results.best,
        reasons=sorted(reasons),
        samples=[samples(finished) for finished in results.rounds],
        answers=[
            (finished.number, finished is results.shown, answers(results, finished)) for finished in results.rounds
        ],
        figures=_figures(figures),
    )
    return html.encode("utf-8", "replace")  # a lone surrogate in model text has no UTF-8


def _figures(figures: dict[str, bytes]) -> dict[str, tuple[int, str, str, str]]:
    """Each figure's number, PNG, alternative text and caption, in the order of the page."""
    shown = [name for name in FIGURES if name in figures]
    return {name: (number, data_uri(figures[name]), *FIGURES[name]) for number, name in enumerate(shown, start=1)}


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


def stage_rows(results: Results) -> list[tuple[str, str, Summary, RoundMetrics | None]]:
    """One row a stage: its name, its kind, its signals, and the round's metrics where it is healed."""
    rows: list[tuple[str, str, Summary, RoundMetrics | None]] = [
        ("base", "base", results.base, None),
        ("prompted", "prompted", results.prompted, None),
        ("opposite persona", "prompted", results.opposite, None),
    ]
    for alpha, summary in results.doses.items():
        rows.append((f"base steered at {alpha:g} c*", "steered", summary, None))
    for finished in results.rounds:
        if finished.steered is not None:
            rows.append((f"round {finished.number}, steered", "steered", finished.steered, None))
        rows.append((f"round {finished.number}, healed", "healed", finished.healed, finished.metrics))
    return rows


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
