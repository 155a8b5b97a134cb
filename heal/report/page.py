"""The report's page: one self-contained HTML file.

Model and user text is untrusted: the template escapes everything, and the page's own policy forbids
the network and every script and style but the two whose hash it names.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from heal.evaluation.choice import best_round
from heal.evaluation.metrics import RoundMetrics
from heal.records import as_record
from heal.report import numbers
from heal.report.completions import samples
from heal.report.results import Results, Summary
from heal.report.tables import KNOWN, Column, columns, round_table, side_effects
from heal.report.words import audits, glossary, remarks, settings

HERE = Path(__file__).resolve().parent
STAGES = ("base", "prompted", "steered", "healed")

# What each figure shows: its section's title, alternative text and caption.
FIGURES = {
    "trajectory": (
        "Trait against coherence: base, prompted, and each round's way over steered to healed.",
        "Trait against coherence, round by round. Each round starts from the student before it (base in round 1): "
        "steering moves it along the dotted line to the hollow mark, healing along the arrow to the filled one. "
        "Up and to the right is better. Thin crosses are 95 % intervals; both panels share the horizontal axis. "
        "p_ans_any is easily pinned near 1, so the lower panel is the more telling.",
    ),
    "signals": (
        "Every signal by round, steered and healed, with base and prompted for comparison.",
        "Every signal by round with its 95 % interval. Base stands at the left of the healed line; the green band is "
        "base under the positive persona as system prompt.",
    ),
    "calibration": (
        "Per-token KL against the steering coefficient, with the target and c*, for each round.",
        "The search for the dose: KL between the model with and without the vector, per token of the steered paths. "
        "The star is c*; the hollow mark is the same 95th percentile on prompts the search did not see.",
    ),
    "training": (
        "Cross-entropy, divergence and the share of completions whose barrier is on, over the rounds.",
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
    environment.globals |= {"dash": numbers.dash, "duration": numbers.duration}
    environment.filters |= {"number": numbers.number, "percent": numbers.percent}
    style, script = (own_text(name) for name in ("style.css", "page.js"))
    last = results.rounds[-1]
    shown = columns(results)
    reasons = sorted({reason for entry in results.rounds for row in entry.rows for reason in row.dropped})
    html = environment.get_template("template.html").render(
        policy=policy(style, script),
        style=style,
        script=script,
        results=results,
        recipe=results.recipe,
        trait=results.facts.get("trait", {}),
        last=last,
        headline=headline(results),
        comparison=comparison(results, shown[0]),
        remarks=remarks(results),
        audits=audits(results),
        settings=settings(results),
        glossary=glossary(results),
        columns=shown,
        side_effects=side_effects(results),
        stages=stage_rows(results),
        rounds=round_table(results),
        best=best_round([as_record(RoundMetrics, entry.metrics, "metrics.json") for entry in results.rounds]),
        reasons=reasons,
        samples=[samples(entry) for entry in results.rounds],
        answers=[(entry.number, entry is last, answers(results, index)) for index, entry in enumerate(results.rounds)],
        figures={name: (data_uri(figures[name]), *FIGURES[name]) for name in FIGURES},
    )
    return html.encode("utf-8", "replace")  # a lone surrogate in model text has no UTF-8


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


def headline(results: Results) -> Markup:
    """The last round's verdict in one sentence, with the numbers it rests on."""
    last = results.rounds[-1]
    label, reason = last.metrics["verdict"]["label"], last.metrics["verdict"]["reason"]
    leads = {
        "holds": "The trait holds and the model stays coherent",
        "no trait shift": "No trait shift is shown",
        "incoherent": f"The model came out incoherent ({reason})",
        "not valid": "The trait’s readout is not valid for this model, so nothing is shown",
        "off-target": "The shift is not the trait’s alone",
        "not finite": f"Some signals are not numbers ({reason})",
    }
    trait, over = last.healed.values["persona_log_ratio"], last.healed.deltas["persona_log_ratio"]
    values = last.healed.values
    return Markup(
        "{lead}: after {rounds} the persona log-ratio is {trait} nats/token, {over} over base "
        "(n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{n} prompts), at p_ans_any {mass}, tail perplexity {tail} "
        "and {loops} looping answers; the least coherence margin is {margin} ({worst})."
    ).format(
        lead=leads.get(label, label),
        rounds="one round" if len(results.rounds) == 1 else f"{len(results.rounds)} rounds",
        trait=numbers.number(trait.value),
        over=numbers.interval(over, sign=True),
        n=over.n,
        mass=numbers.number(values["p_ans_any"].value),
        tail=numbers.number(values["tail_perplexity"].value, 2),
        loops=numbers.percent(values["repetition_share"].value),
        margin=numbers.number(last.metrics["coherence"]["margin"], 2),
        worst=KNOWN[last.metrics["coherence"]["worst"]][0].lower(),
    )


def comparison(results: Results, column: Column) -> Markup:
    """The trait of the other stages, in one sentence."""
    last = results.rounds[-1]
    steered = Markup("")
    if last.steered is not None:
        steered = Markup("steered at c* (round {}) {}; ").format(last.number, column.whole(last.steered))
    return Markup(
        "The same measure elsewhere: base {base}; base prompted with the positive persona {prompted}; "
        "{steered}healed (round {number}) {healed}."
    ).format(
        base=column.whole(results.base),
        prompted=column.whole(results.prompted),
        steered=steered,
        number=last.number,
        healed=column.whole(last.healed),
    )


def stage_rows(results: Results) -> list[tuple[str, str, Summary, dict[str, Any] | None]]:
    """One row a stage: its name, its kind, its signals, and the round's metrics where it is healed."""
    rows: list[tuple[str, str, Summary, dict[str, Any] | None]] = [
        ("base", "base", results.base, None),
        ("prompted", "prompted", results.prompted, None),
        ("opposite persona", "prompted", results.opposite, None),
    ]
    for alpha, summary in results.doses.items():
        rows.append((f"base steered at {alpha:g} c*", "steered", summary, None))
    for entry in results.rounds:
        if entry.steered is not None:
            rows.append((f"round {entry.number}, steered", "steered", entry.steered, None))
        rows.append((f"round {entry.number}, healed", "healed", entry.healed, entry.metrics))
    return rows


def answers(results: Results, index: int) -> list[tuple[str, list[tuple[str, dict[str, Any] | None]]]]:
    """The answers of a round by prompt: base, prompted, steered, healed side by side; None: not on disk."""
    outputs = results.rounds[index].outputs | {"prompted": results.prompted_outputs}
    prompts = [row["prompt"] for row in outputs["base"]]
    shown = [stage for stage in STAGES if stage != "steered" or results.rounds[index].steered is not None]
    by_stage = {stage: dict(enumerate(outputs.get(stage, []))) for stage in shown}
    return [(prompt, [(stage, by_stage[stage].get(place)) for stage in shown]) for place, prompt in enumerate(prompts)]
