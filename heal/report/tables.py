"""The page's tables: the columns of the stages, and the rounds side by side."""

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from heal.evaluation.validity import Validity
from heal.report.numbers import bounds, dash, interval, no_items, number, percent
from heal.report.results import Results, Round, Summary
from heal.report.words import no_audit
from heal.run.folder import STEPS


@dataclass(frozen=True)
class Column:
    """A signal as a column of the stages' table.

    Attributes:
        name: of the signal.
        title: of the column.
        unit: under the title.
        digits: after the point.
        n: items that base was scored on.
        validity: whether it says anything about this model.
    """

    name: str
    title: str
    unit: str
    digits: int
    n: int
    validity: Validity | None = None

    @property
    def flag(self) -> Markup:
        """Empty where the signal is valid; else a word whose title says why it is not."""
        if self.validity is None or self.validity.valid:
            return Markup("")
        return Markup('<small class="invalid" title="{}">not valid here</small>').format(self.validity.why)

    def value(self, stage: Summary) -> Markup:
        """The stage's value, or a dash with its reason."""
        entry = stage.values.get(self.name)
        return dash("not measured") if entry is None else number(entry.value, self.digits, why=no_items(entry))

    def bounds(self, stage: Summary) -> Markup:
        """Its interval, and the number of items where it is not the column's."""
        entry = stage.values.get(self.name)
        if entry is None or entry.n == 0:
            return Markup("")
        fewer = Markup("") if entry.n == self.n else Markup(" n = {}").format(entry.n)
        return bounds(entry, self.digits) + fewer

    def whole(self, stage: Summary) -> Markup:
        """Value and interval."""
        entry = stage.values.get(self.name)
        return dash("not measured") if entry is None else interval(entry, self.digits)

    def difference(self, stage: Summary) -> Markup:
        """The paired difference to base with its interval."""
        entry = stage.deltas.get(self.name)
        return dash("not measured") if entry is None else interval(entry, self.digits, sign=True)


# The signals that heal measures by itself; others follow under their own names.
KNOWN = {
    "persona_log_ratio": ("Trait", "persona log-ratio, nats/token", 3),
    "p_ans_any": ("p_ans_any", "mean mass on valid answers", 3),
    "unscorable_share": ("Unscorable", "share of questions", 2),
    "tail_perplexity": ("Tail perplexity", "median, under base", 2),
    "repetition_share": ("Looping", "share of answers", 2),
    "alive_share": ("Alive", "share of answers", 2),
    "probe_mass": ("Probe mass", "on its answers", 3),
    "scaffold_nats": ("Scaffold", "nats/token", 2),
    "accuracy": ("Accuracy", "general questions", 2),
    "question_informedness": ("Informedness", "general questions", 2),
    "neutral_kl_p50": ("KL on neutral text, median", "nats, over a text's tokens", 3),
    "neutral_kl_p95": ("KL on neutral text, p95", "nats, over a text's tokens", 3),
    "neutral_kl_max": ("KL on neutral text, largest", "nats, over a text's tokens", 3),
    "answer_tokens": ("Answer length", "tokens", 1),
    "ended_share": ("Ended by itself", "share of answers", 2),
    "refusal_share": ("Refusing", "share of answers", 2),
}
# What else moved, beside the trait and the coherence of text.
SIDE_EFFECTS = ("accuracy", "question_informedness")


def columns(results: Results) -> list[Column]:
    """One column a signal of the trait or of coherence, the trait first."""
    return [_column(results, name) for name in _measured(results) if not _is_side_effect(results, name)]


def side_effects(results: Results) -> list[Column]:
    """Everything else that was measured: accuracy, drift on neutral text, other foundations, lengths, refusals."""
    return [_column(results, name) for name in _measured(results) if _is_side_effect(results, name)]


def _measured(results: Results) -> list[str]:
    measured = list(results.base.values)
    return [name for name in KNOWN if name in measured] + [name for name in measured if name not in KNOWN]


def _is_side_effect(results: Results, name: str) -> bool:
    return results.base.roles[name] == "off_target" or name in SIDE_EFFECTS


def _column(results: Results, name: str) -> Column:
    title, unit, digits = KNOWN.get(name, (name, "", 3))
    return Column(name, title, unit, digits, results.base.values[name].n, results.validity.get(name))


@dataclass(frozen=True)
class Line:
    """One quantity over the rounds; `note` says what it is, in a few words."""

    label: str
    note: str
    cells: list[Markup]


def round_table(results: Results) -> list[tuple[str, list[Line]]]:
    """Groups of lines: what each round was given, what it kept, how it trained, what it took."""

    def line(label: str, note: str, cell: Callable[[Round], Markup]) -> Line:
        return Line(label, note, [cell(entry) for entry in results.rounds])

    def dose(name: str, digits: int) -> Callable[[Round], Markup]:
        return lambda entry: number(entry.metrics["dose"][name], digits)

    def training(name: str, digits: int = 3, why: str = "not logged") -> Callable[[Round], Markup]:
        return lambda entry: number(entry.metrics["training"].get(name), digits, why=why)

    def audit(entry: Round) -> Markup:
        return number(entry.metrics["dose"]["audit_p95"], why=f"no audit ({no_audit(results)})")

    def seconds(stage: str) -> Callable[[Round], Markup]:
        return lambda entry: number(entry.seconds.get(stage), 0, why="not recorded")

    no_validation = "no completions held out (heal.validation = 0)"
    stages = [stage for stage in STEPS if any(stage in entry.seconds for entry in results.rounds)]
    return [
        (
            "Dose",
            [
                line("c*", "coefficient", dose("c_star", 3)),
                line("p95 KL at c*", f"nats, target {results.recipe.calibration.target:g}", dose("p95", 3)),
                line("audit", "the same on held-out prompts", audit),
                line("tokens measured", "at c*, and in the audit", _tokens),
                line("search ended on", "passes", _outcome),
                line("dose scale", "1: not walked down", dose("scale", 2)),
            ],
        ),
        (
            "Completions",
            [
                line("kept", "of those made", _kept),
                line("ended by themselves", "of the kept", lambda r: percent(r.metrics["generation"]["ended_share"])),
            ],
        ),
        (
            "Healing, last epoch",
            [
                line("loss", "CE + barrier", training("loss")),
                line("CE", "nats/token", training("ce")),
                line("D, mean", "nats", training("D_mean")),
                line("D, largest", "nats", training("D_max")),
                line("barrier on", "share of completions", lambda r: percent(r.metrics["training"]["barrier_on"])),
                line("validation CE", "nats/token", training("validation_ce", why=no_validation)),
                line("validation D", "nats", training("validation_D", why=no_validation)),
            ],
        ),
        ("Direction", [line("cosine to round 1", "of the vectors", lambda r: number(r.metrics["cosine_to_first"]))]),
        (
            "Outcome",
            [
                line("coh_cost", "|d p_ans_any| / |d trait|", _cost),
                line("verdict", "of the healed student", lambda r: Markup("{}").format(r.metrics["verdict"]["label"])),
            ],
        ),
        *_foundations(results),
        (
            "Seconds",
            [line(stage, "", seconds(stage)) for stage in stages]
            + [line("whole round", "", lambda r: number(sum(r.seconds.values()), 0))],
        ),
    ]


def _foundations(results: Results) -> list[tuple[str, list[Line]]]:
    """Temperature and surgical informedness of the scenes, where they were asked."""
    first = results.rounds[0].metrics["foundations"]
    if first is None:
        return []

    def surgical(name: str) -> list[Markup]:
        why = "base calls no scene wrong, or none right, so there is nothing to flip"
        return [number(entry.metrics["foundations"]["surgical"][name]["value"], 1, why=why) for entry in results.rounds]

    temperatures = [number(entry.metrics["foundations"]["temperature"], 2) for entry in results.rounds]
    lines = [Line("temperature", "of the forced choice, fitted to the labels", temperatures)]
    lines += [Line("SI", f"{name}; base as the other side", surgical(name)) for name in first.get("surgical", {})]
    return [("Moral foundations", lines)]


def _tokens(entry: Round) -> Markup:
    found = entry.calibration
    at_c_star = next((point["n"] for point in reversed(found["history"]) if point["c"] == found["c_star"]), None)
    counts = [count for count in (at_c_star, (found["audit"] or {}).get("n")) if count is not None]
    return Markup(", ".join(str(count) for count in counts)) if counts else dash("not recorded")


def _outcome(entry: Round) -> Markup:
    return Markup("{} ({})").format(entry.metrics["dose"]["outcome"], entry.calibration["passes"])


def _kept(entry: Round) -> Markup:
    generation = entry.metrics["generation"]
    return Markup("{} of {}").format(generation["kept"], generation["made"])


def _cost(entry: Round) -> Markup:
    cost = entry.metrics["coh_cost"]
    if cost is None:
        return dash("the interval of the trait's difference includes zero, so a ratio to it means nothing")
    parts = [number(cost["d_coherence"], 3, sign=True), number(cost["d_trait"], 3, sign=True)]
    return Markup('{}<span class="bounds">{} / {}</span>').format(number(cost["ratio"]), *parts)
