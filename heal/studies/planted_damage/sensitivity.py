"""Which coherence signal notices which damage, and at what size: damage is planted and everything is measured.

Texts are spoilt after base wrote them (damage.py, beside this file), so only what is read off answers can notice;
noise in the weights changes what the model writes as well, so everything can.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product

from heal.evaluation.evaluate import evaluate
from heal.evaluation.metrics import SignalFigures
from heal.evaluation.readouts import alive, free_answers, likelihood
from heal.evaluation.results import StageResult, summarise
from heal.evaluation.signal import Limits, Signal, limited, signals
from heal.evaluation.stats import Estimate
from heal.evaluation.subject import Subject
from heal.markdown import markdown_table
from heal.studies.planted_damage.damage import KINDS, damaged, noisy_weights

SIZES = (0.1, 0.25, 0.5, 1.0)  # fraction of an answer, or of the answers, that is spoilt
NOISE = (0.05, 0.1, 0.2, 0.3, 0.5)  # standard deviations of the weights
WEIGHTS = "weight noise"
OF_ANSWERS = (free_answers, likelihood, alive)  # readouts of what was said; the others ask something else


@dataclass(frozen=True)
class Finding:
    """One signal under one damage.

    Attributes:
        kind, size: of the damage.
        signal: its name.
        value: with the damage.
        shift: paired difference to the undamaged answers.
        noticed: the shift's interval lies wholly on the bad side of 0 (on either, for what is merely counted).
        past: the value is past the recipe's limit.
    """

    kind: str
    size: float
    signal: str
    value: Estimate
    shift: Estimate
    noticed: bool
    past: bool

    def row(self) -> dict[str, object]:
        """One line of a CSV."""
        estimates = {"value": self.value, "shift": self.shift}
        numbers = {f"{name}_{key}": n for name, estimate in estimates.items() for key, n in asdict(estimate).items()}
        shown = {name: f"{n:.6g}" for name, n in numbers.items() if name != "shift_n"}
        flags = {"noticed": int(self.noticed), "past": int(self.past)}
        return {"damage": self.kind, "size": self.size, "signal": self.signal} | shown | flags


def damages() -> list[tuple[str, float]]:
    """Every kind at every size."""
    return [*product(KINDS, SIZES), *((WEIGHTS, size) for size in NOISE)]


def plant(subject: Subject, base: StageResult, seed: int) -> Iterator[tuple[str, float, StageResult]]:
    """The signals under every damage, one after another.

    Args:
        subject: base, undamaged; with noisy weights it answers the same prompts again.
        base: what it answered and measured.
        seed: of the damage.
    """
    model = subject.setup.language_model
    for kind, size in product(KINDS, SIZES):
        answers = damaged(model, base.answers, kind, size, seed)
        measured = [value for readout in OF_ANSWERS for value in readout.measure(subject, answers)]
        yield kind, size, StageResult(kind, tuple(answers), tuple(measured))
    for size in NOISE:
        yield WEIGHTS, size, evaluate(replace(subject, gates=partial(noisy_weights, model, size, seed)))


def findings(
    kind: str, size: float, damage: StageResult, base: StageResult, limits: Limits, resamples: int, seed: int
) -> list[Finding]:
    """Every signal of a damaged stage, set against base's, in display order."""
    summary = summarise(damage, base, resamples, seed)
    return [
        _finding(kind, size, signal, summary[name], limits) for name, signal in signals().items() if name in summary
    ]


def table(noticed: Sequence[Finding]) -> str:
    """A Markdown table: one line a damage and size, one column a signal; noticed ones marked *, past a limit bold.

    The columns are the signals that have a limit and those that merely count something about the answers.
    """
    names = [name for name in columns() if any(finding.signal == name for finding in noticed)]
    lines = []
    for kind, size in dict.fromkeys((finding.kind, finding.size) for finding in noticed):
        at = {finding.signal: finding for finding in noticed if (finding.kind, finding.size) == (kind, size)}
        lines.append([kind, f"{size:g}", *(_cell(at.get(name)) for name in names)])
    return markdown_table(["damage", "size", *names], lines) + "\n"


def smallest(noticed: Sequence[Finding]) -> str:
    """A Markdown table: the smallest size of each damage that a signal with a limit notices, and larger ones missed."""
    names = [name for name in limited() if any(finding.signal == name for finding in noticed)]
    kinds = dict.fromkeys(finding.kind for finding in noticed if finding.size)
    lines = [[kind, *(_from(noticed, kind, name) for name in names)] for kind in kinds]
    return markdown_table(["damage", *names], lines) + "\n"


def _from(noticed: Sequence[Finding], kind: str, signal: str) -> str:
    """The smallest noticed size; a dash without one, empty where the signal was not measured."""
    rows = [finding for finding in noticed if (finding.kind, finding.signal) == (kind, signal)]
    if not any(finding.noticed for finding in rows):
        return "\N{EN DASH}" if rows else ""
    least = min(finding.size for finding in rows if finding.noticed)
    missed = ", ".join(f"{finding.size:g}" for finding in rows if finding.size > least and not finding.noticed)
    return f"{least:g}" + (f" (not {missed})" if missed else "")


def columns() -> list[str]:
    """The signals that the table shows."""
    counted = [name for name, signal in signals().items() if signal.better is None and signal.items == "answers"]
    return [*limited(), *counted]


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return ""
    text = f"{finding.value.value:.2f}{'*' if finding.noticed else ''}"
    return f"**{text}**" if finding.past else text


def _finding(kind: str, size: float, signal: Signal, figures: SignalFigures, limits: Limits) -> Finding:
    shift, limit = figures.delta, signal.limit
    noticed = shift.excludes_zero if signal.better is None else signal.worsened(shift)
    base = figures.value - shift.value
    past = limit is not None and limit.past(limit.counted(figures), limit.at(limits[signal.name], base))
    value = Estimate(figures.value, figures.low, figures.high, figures.n)
    return Finding(kind, size, signal.name, value, shift, noticed, past)
