"""The page's tables: the columns of the stages, and the rounds side by side."""

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from heal.evaluation.asking.way import Tried
from heal.evaluation.metrics import CoherenceCost, FoundationFigures, Summary
from heal.evaluation.signal import Signal, Validity, described
from heal.places.place import cells, header
from heal.report.headline import term
from heal.report.numbers import bounds, dash, interval, no_items, number, percent
from heal.report.results import Results, Round
from heal.report.signals import binding, decides
from heal.report.words import no_audit

ROWS = 10  # of rounds that a table shows at once


@dataclass(frozen=True)
class Column:
    """A signal as a column of the stages' table, or a row of the side effects.

    Attributes:
        signal: its description.
        n: items that base was scored on.
        validity: whether it says anything about this model.
    """

    signal: Signal
    n: int
    validity: Validity | None = None

    @property
    def validity_holds(self) -> bool:
        """Whether the signal is valid for the model, as far as that was judged."""
        return self.validity is None or self.validity.valid

    @property
    def flag(self) -> Markup:
        """Empty where the signal is valid; else a word whose title says why it is not."""
        if self.validity is None or self.validity_holds:
            return Markup("")
        return Markup('<small class="invalid" title="{}">not valid here</small>').format(self.validity.why)

    def value(self, stage: Summary) -> Markup:
        """The stage's value, or a dash with its reason."""
        figures = stage.get(self.signal.name)
        if figures is None:
            return dash("not measured")
        return number(figures.value, self.signal.digits, why=no_items(figures))

    def bounds(self, stage: Summary) -> Markup:
        """Its interval, and the number of items where it is not the column's."""
        figures = stage.get(self.signal.name)
        if figures is None or figures.n == 0:
            return Markup("")
        fewer = Markup("") if figures.n == self.n else Markup(" n = {}").format(figures.n)
        return bounds(figures, self.signal.digits) + fewer

    def whole(self, stage: Summary) -> Markup:
        """Value and interval."""
        figures = stage.get(self.signal.name)
        return dash("not measured") if figures is None else interval(figures, self.signal.digits)

    def difference(self, stage: Summary) -> Markup:
        """The paired difference to base with its interval."""
        figures = stage.get(self.signal.name)
        if figures is None:
            return dash("not measured")
        return interval(figures.delta, self.signal.digits, sign=True)


def columns(results: Results) -> list[Column]:
    """One column for each signal that a verdict rests on: the trait, and what has a limit of coherence."""
    return [column for column in _columns(results) if decides(column.signal)]


def side_effects(results: Results) -> list[Column]:
    """Everything else that was measured: drift on neutral text, other foundations, lengths, refusals."""
    return [column for column in _columns(results) if not decides(column.signal)]


def prominent(results: Results, count: int = ROWS) -> frozenset[int]:
    """The numbers of at most `count` rounds that a table shows at once: first, best, last, the rest evenly between."""
    numbers = [finished.number for finished in results.rounds]
    if len(numbers) <= count:
        return frozenset(numbers)
    chosen = [numbers[0], results.shown.number, numbers[-1]]
    evenly = [numbers[round(place * (len(numbers) - 1) / (count - 1))] for place in range(count)]
    return frozenset(list(dict.fromkeys(chosen + evenly))[:count])


@dataclass(frozen=True)
class StageRow:
    """A stage as a row: its name and kind, its signals, the round that it is the end of, and whether it is shown."""

    name: str
    kind: str
    signals: Summary
    finished: Round | None = None
    shown: bool = True


def stage_rows(results: Results) -> list[StageRow]:
    """One row a stage; of a long run those of at most ten rounds are shown at once, and the others on request."""
    steered = sum(finished.steered is not None for finished in results.rounds)
    both = len(results.rounds) + steered <= ROWS
    at_once = prominent(results)
    rows = [
        StageRow("base", "base", results.base),
        StageRow("prompted", "prompted", results.prompted),
        StageRow("opposite persona", "prompted", results.opposite),
        *(StageRow(f"base at {alpha:g} c*", "steered", summary) for alpha, summary in results.doses.items()),
    ]
    for finished in results.rounds:
        name = f"round {finished.number}"
        if finished.steered is not None:
            rows.append(StageRow(f"{name}, steered", "steered", finished.steered, shown=both))
        rows.append(StageRow(name, "healed", finished.healed, finished, finished.number in at_once))
    return rows


def folded(results: Results) -> tuple[list[Column], list[Column]]:
    """The columns of the stages' table, and those that say the same at every stage, which one line replaces."""
    rows = stage_rows(results)
    vary: list[Column] = []
    still: list[Column] = []
    for column in columns(results):
        values = [column.value(row.signals) for row in rows if column.signal.name in row.signals]
        same = len(values) > 1 and len(set(values)) == 1 and column.signal.role != "trait" and column.validity_holds
        (still if same else vary).append(column)
    return vary, still


def _columns(results: Results) -> list[Column]:
    return [
        Column(signal, results.base[signal.name].n, results.validity.get(signal.name))
        for signal in described(results.base)
    ]


@dataclass(frozen=True)
class Line:
    """One quantity over the rounds; `note` says what it is, in a few words."""

    label: str
    note: str
    cells: list[Markup]

    @property
    def constant(self) -> bool:
        """Whether several rounds say the same."""
        return len(self.cells) > 1 and len(set(self.cells)) == 1


@dataclass(frozen=True)
class Group:
    """Lines of one kind, under a title."""

    title: str
    lines: list[Line]

    @property
    def varying(self) -> list[Line]:
        """The lines that say something of single rounds."""
        return [line for line in self.lines if not line.constant]

    @property
    def constant(self) -> list[Line]:
        """Those that say the same of every round."""
        return [line for line in self.lines if line.constant]


def places(results: Results) -> tuple[list[str], list[tuple[bool, list[str]]]]:
    """The places at which steering was tried: a header, and a line each with whether it is the chosen one."""
    if results.placed is None or not results.placed.tried:
        return [], []
    return header(), [(one.place == results.placed.place, cells(one)) for one in results.placed.tried]


def crosstalk(results: Results) -> list[tuple[str, list[Markup]]]:
    """A line for each trait's vector on base: its c*, its KL, and the shift of every trait's readout; none of one."""
    if results.crosstalk is None:
        return []
    return [
        (trait, [number(own.c_star, 3), number(own.p95, 2), *(interval(one, sign=True) for one in own.shifts.values())])
        for trait, own in results.crosstalk.vectors.items()
    ]


@dataclass(frozen=True)
class WayLine:
    """One way of asking a question: its figures on base, and whether it was chosen."""

    label: str
    chosen: bool
    cells: list[Markup]


def ways(results: Results) -> list[tuple[str, list[WayLine]]]:
    """Every way that was tried, by question."""

    def cells(tried: Tried) -> list[Markup]:
        halves = Markup(", ").join(number(half, 2, sign=True, why="one class alone") for half in tried.halves)
        return [
            interval(tried.informedness, 2, sign=True),
            halves,
            number(tried.mass, 2, why="no slot, so no mass"),
            number(tried.accuracy, 2),
            Markup(str(tried.informedness.n)),
            Markup('<span title="{}">{}</span>').format(tried.why, "valid" if tried.valid else "not valid"),
        ]

    return [
        (question, [WayLine(label, label == asking.label, cells(tried)) for label, tried in asking.tried.items()])
        for question, asking in results.asking.items()
    ]


def round_table(results: Results) -> list[Group]:
    """What each round was given, what it kept, how it trained, what came of it and how long it took."""

    def line(label: str, note: str, cell: Callable[[Round], Markup]) -> Line:
        return Line(label, note, [cell(finished) for finished in results.rounds])

    return [
        Group("Dose", _dose_lines(results, line)),
        Group(
            "Completions",
            [
                line("kept", "of those sampled", _kept),
                line("ended by themselves", "of the kept", lambda r: percent(r.metrics.generation.ended_share)),
            ],
        ),
        Group("Healing, last epoch", _training_lines(results, line)),
        Group("Drift from base after healing", _drift_lines(line)),
        Group("Direction", [line("cosine to round 1", "of the vectors", lambda r: number(r.metrics.cosine_to_first))]),
        Group(
            "Outcome",
            [
                line("coherence margin", "1 as at base, 0 at a limit", _margin),
                line("coh_cost", "|d p_ans_any| / |d trait|", _cost),
                line("verdict", "on the healed student", lambda r: Markup("{}").format(r.metrics.verdict.label)),
            ],
        ),
        *_foundations(results),
        Group("Seconds", _seconds_lines(results, line)),
    ]


MakeLine = Callable[[str, str, Callable[[Round], Markup]], Line]


def _dose_lines(results: Results, line: MakeLine) -> list[Line]:
    why = f"no audit ({no_audit(results)})"
    return [
        line("c*", "coefficient", lambda r: number(r.metrics.dose.c_star, 3)),
        line(
            "p95 KL at c*",
            f"nats, target {results.recipe.calibration.target:g}",
            lambda r: number(r.metrics.dose.p95, 3),
        ),
        line("audit", "the same on held-out prompts", lambda r: number(r.metrics.dose.audit_p95, 3, why=why)),
        line("tokens measured", "at c*, and in the audit", _tokens),
        line("search ended on", "passes", _outcome),
        line("dose scale", "1: not walked down", lambda r: number(r.metrics.dose.scale, 2)),
    ]


def _training_lines(results: Results, line: MakeLine) -> list[Line]:
    follows = results.recipe.heal.barrier.strength is None and results.last.metrics.training.strength is not None
    why, none = "no completions held out (heal.validation = 0)", "not measured: the recipe has no barrier"
    return [
        line("loss", "CE + barrier", lambda r: number(r.metrics.training.loss)),
        line("CE", "nats/token", lambda r: number(r.metrics.training.ce)),
        line("D, mean", "nats", lambda r: number(r.metrics.training.D_mean, why=none)),
        line("D, largest", "nats", lambda r: number(r.metrics.training.D_max, why=none)),
        line("barrier on", "fraction of completions", lambda r: percent(r.metrics.training.barrier_on, why=none)),
        *([line("lambda", "after the last step", lambda r: number(r.metrics.training.strength))] if follows else []),
        line("validation CE", "nats/token", lambda r: number(r.metrics.training.validation_ce, why=why)),
        line("validation D", "nats", lambda r: number(r.metrics.training.validation_D, why=why)),
    ]


def _drift_lines(line: MakeLine) -> list[Line]:
    """Both divergences on both kinds of text: the root mean square, and the other figures below it."""

    def cell(texts: str, divergence: str) -> Callable[[Round], Markup]:
        def shown(finished: Round) -> Markup:
            drift = finished.metrics.drift
            spread = None if drift is None else drift.by_text[texts].get(divergence)
            if spread is None:
                return dash("not measured by the version that made this round" if drift is None else "no tokens")
            rest = [number(value, 2) for value in (spread.mean, spread.p95, spread.max)]
            return Markup('{}<span class="bounds">{}, {}, {}</span>').format(number(spread.rmse, 3), *rest)

        return shown

    return [
        line(f"{label}, {texts}", "nats, rms; below: mean, p95, largest", cell(texts, divergence))
        for texts in ("completions", "answers")
        for divergence, label in (
            ("kl_rev", "KL(student \N{PARALLEL TO} base)"),
            ("kl_fwd", "KL(base \N{PARALLEL TO} student)"),
        )
    ]


def _seconds_lines(results: Results, line: MakeLine) -> list[Line]:
    steps = dict.fromkeys(step for finished in results.rounds for step in finished.seconds)

    def seconds(step: str) -> Callable[[Round], Markup]:
        return lambda finished: number(finished.seconds.get(step), 0, why="not recorded")

    whole = line("whole round", "", lambda r: number(sum(r.seconds.values()), 0))
    return [*(line(step, "", seconds(step)) for step in steps), whole]


def _foundations(results: Results) -> list[Group]:
    """Temperature and surgical informedness of the scenes, where they were asked."""
    by_round = [finished.metrics.foundations for finished in results.rounds]
    if by_round[0] is None:
        return []

    def surgical(scenes: FoundationFigures | None, variant: str, label: str) -> Markup:
        si = None if scenes is None else scenes.surgical.get(variant)
        if si is None or si.label != label:
            return dash("not measured" if si is None else si.label)
        return number(si.value, 1, why="base calls no scene wrong, or none right, so there is nothing to flip")

    temperatures = [number(foundations.temperature if foundations else None, 2) for foundations in by_round]
    lines = [Line("temperature", "of the forced choice, fitted to the labels", temperatures)]
    # Values of different labels do not compare: a line each.
    every = [item for scenes in by_round if scenes is not None for item in scenes.surgical.items()]
    for variant, label in dict.fromkeys((variant, si.label) for variant, si in every):
        lines.append(Line(f"SI, {label}", variant, [surgical(scenes, variant, label) for scenes in by_round]))
    return [Group("Moral foundations", lines)]


def _tokens(finished: Round) -> Markup:
    dose = finished.calibration
    at_c_star = [point.n for point in dose.history if point.c == dose.c_star][-1:]
    counts = at_c_star + ([] if dose.audit is None else [dose.audit.n])
    return Markup(", ".join(str(count) for count in counts)) if counts else dash("not recorded")


def _outcome(finished: Round) -> Markup:
    return Markup("{} ({})").format(finished.metrics.dose.outcome, finished.calibration.passes)


def _kept(finished: Round) -> Markup:
    generation = finished.metrics.generation
    asked = f" (asked for {generation.asked})" if generation.asked else ""
    return Markup("{} of {}{}").format(generation.kept, generation.made, asked)


def margin_cell(results: Results, row: StageRow) -> Markup:
    """The coherence margin of a stage, and the signal that binds it."""
    least = row.finished.metrics.coherence if row.finished else binding(results, row.signals)
    if least is None:
        return dash("no signal of coherence is valid")
    bound = "" if least.margin == 1 else term(least.worst)
    return Markup('{}<span class="bounds">{}</span>').format(number(least.margin, 2), bound)


def _margin(finished: Round) -> Markup:
    least = finished.metrics.coherence
    return Markup('{}<span class="bounds">{}</span>').format(number(least.margin, 2), least.worst)


def _cost(finished: Round) -> Markup:
    cost: CoherenceCost | None = finished.metrics.coh_cost
    if cost is None:
        return dash("the interval of the trait's difference includes zero, so a ratio to it means nothing")
    parts = [number(cost.d_p_ans_any, 3, sign=True), number(cost.d_trait, 3, sign=True)]
    return Markup('{}<span class="bounds">{} / {}</span>').format(number(cost.ratio), *parts)
