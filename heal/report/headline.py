"""How the page opens: which round to use and what it is, in two sentences, and the commands for it."""

import shlex
from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from heal.evaluation.choice import NOT_VALID, why_stop
from heal.evaluation.metrics import Summary, of_each_trait
from heal.evaluation.signal import TRAIT, Signal, signal_named, signals
from heal.report import numbers
from heal.report.results import Results, Round

ON_PROMPT, RELEVANCE = "identified_share", "relevance"
MOST_STRETCHES = 3  # of rounds with one verdict that are told one by one


def headline(results: Results) -> Markup:
    """The first sentence: the round to use, its trait beside base and prompting, its margin and its relevance."""
    best, shown = results.best, results.shown
    if best is None:
        unreadable = shown.metrics.verdict.label == NOT_VALID
        doubt = ": the trait’s readout is not valid for this model, so nothing is shown" if unreadable else ""
        return Markup("Use no round: {none} holds{doubt}. After the last one: {facts}.").format(
            none=f"none of {len(results.rounds)}",
            doubt=doubt,
            facts=_facts(results, numbers.interval(shown.metrics.trait.delta, sign=True), Markup("")),
        )
    choice = best.choice
    over = Markup("")
    if choice.over_prompted is not None:
        more = numbers.interval(choice.over_prompted, sign=True)
        over = Markup(", a difference of {}").format(more)
    return Markup("Use round {number} of {rounds}: it holds, with {facts}.").format(
        number=shown.number,
        rounds=len(results.rounds),
        facts=_facts(results, numbers.interval(choice.shift, sign=True), over),
    )


def _facts(results: Results, shift: Markup, over_prompted: Markup) -> Markup:
    metrics = results.shown.metrics
    least = metrics.coherence
    prompted = results.prompted.get(TRAIT)
    beside = numbers.dash("not measured") if prompted is None else numbers.interval(prompted.delta, sign=True)
    return Markup(
        "{shift} nats/token of the trait over base (n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{n} prompts{each}), where "
        "prompting with the persona gives {beside}{over}; coherence margin {margin} (1 as at base, 0 at a limit), "
        "bound by {worst}; {relevance}"
    ).format(
        shift=shift,
        n=metrics.trait.delta.n,
        each=_of_each(metrics.healed),
        beside=beside,
        over=over_prompted,
        margin=numbers.number(least.margin, 2),
        worst=term(least.worst),
        relevance=_relevance(results),
    )


def _of_each(healed: Summary) -> Markup:
    """`; by trait love +0.210 [...], curiosity +0.100 [...]`; empty with one trait."""
    shifts = [
        Markup("{} {}").format(name, numbers.interval(figures.delta, sign=True))
        for name, figures in of_each_trait(healed).items()
    ]
    return Markup("; by trait {}").format(Markup(", ").join(shifts)) if shifts else Markup("")


def _relevance(results: Results) -> Markup:
    """`answers speak to their own prompt 1.00 of the time (base 1.00), relevance 0.31 nats/token (base 0.35)`."""
    healed, parts = results.shown.healed, []
    for name, form in (
        (ON_PROMPT, "answers speak to their own prompt {} of the time (base {})"),
        (RELEVANCE, "relevance {} nats/token (base {})"),
    ):
        if name in healed and name in results.base:
            doubt = "" if name in results.valid else ", not valid here"
            values = [_value(signals()[name], stage) for stage in (healed, results.base)]
            parts.append(Markup(form).format(values[0], values[1] + doubt))
    return Markup(", ").join(parts) if parts else Markup("the relevance of its answers was not measured")


def _value(signal: Signal, stage: Summary) -> Markup:
    return numbers.number(stage[signal.name].value, signal.digits)


def afterwards(results: Results) -> Markup:
    """The second sentence: what became of the rounds after it, and why the run ended."""
    stopped = why_stop([finished.metrics for finished in results.rounds], results.recipe.run)
    end = Markup("The run ended there: {}.").format(stopped) if stopped else Markup("")
    if results.best is None:
        return Markup("By round: {}. {}").format(_told(results.rounds), end)
    later = results.rounds[results.best.choice.index + 1 :]
    if not later:
        planned = results.recipe.run.rounds
        more = "" if stopped or len(results.rounds) >= planned else f", and {planned} were planned"
        return Markup("It is the last round{}. {}").format(more, end)
    return Markup("After it: {}. {}").format(_told(later), end)


def _told(rounds: Sequence[Round]) -> Markup:
    """`round 3 holds (+0.160 over base, margin 0.70), rounds 4 and 5 incoherent (looping answers 33% > 0.25)`."""
    stretches = [list(group) for _, group in groupby(rounds, key=lambda finished: finished.metrics.verdict.label)]
    if len(stretches) <= MOST_STRETCHES:
        return Markup(", ").join(Markup("{} {}").format(_numbered(part), _verdict(part)) for part in stretches)
    by_label: dict[str, list[Round]] = {}
    for finished in rounds:
        by_label.setdefault(finished.metrics.verdict.label, []).append(finished)
    counts = [Markup("{} {}").format(len(part), label) for label, part in by_label.items()]
    last = rounds[-1]
    return Markup("{}; the last of them, {} {}").format(Markup(", ").join(counts), _numbered([last]), _verdict([last]))


def _numbered(rounds: Sequence[Round]) -> str:
    return numbers.of_rounds([finished.number for finished in rounds])


def _verdict(rounds: Sequence[Round]) -> Markup:
    """The verdict that rounds have in common, with what the last of them came to."""
    verdict = rounds[-1].metrics.verdict
    if not verdict.holds:
        return Markup("{} ({})").format(verdict.label, verdict.reason)
    label, which = ("holds", "") if len(rounds) == 1 else ("hold", "the last ")
    return Markup("{} ({}{})").format(label, which, _shift(rounds[-1]))


def _shift(finished: Round) -> Markup:
    return Markup("{} over base, margin {}").format(
        numbers.number(finished.metrics.trait.delta.value, sign=True),
        numbers.number(finished.metrics.coherence.margin, 2),
    )


def term(name: str) -> str:
    """What a signal is called within a sentence."""
    signal = signal_named(name)
    return name if signal is None else signal.term


def commands(results: Results) -> list[tuple[str, str]]:
    """What to type to chat with the round that the page speaks of, and to export it."""
    run, number = shlex.quote(f"run={results.path}"), results.shown.number
    return [("Chat", f"heal chat {run} round={number}"), ("Export", f"heal export {run} round={number}")]
