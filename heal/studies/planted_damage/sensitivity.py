"""Which coherence signal notices which damage, and at what size: damage is planted and everything is measured.

Texts are spoilt after base wrote them (damage.py, beside this file), so only what is read off answers can notice;
noise in the weights changes what the model writes as well, so everything can.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product

from heal.evaluation.evaluate import evaluate
from heal.evaluation.readouts import alive, free_answers
from heal.evaluation.results import StageResult, StageSummary, summarise
from heal.evaluation.stats import Estimate
from heal.evaluation.subject import Subject
from heal.evaluation.verdict import LIMITED, Floors
from heal.studies.planted_damage.damage import KINDS, damaged, noisy_weights

SIZES = (0.1, 0.25, 0.5, 1.0)  # share of an answer that is spoilt
NOISE = (0.05, 0.1, 0.2, 0.3, 0.5)  # standard deviations of the weights
WEIGHTS = "weight noise"
COUNTED = ("answer_tokens", "ended_share", "refusal_share")  # they have no bad direction


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
        numbers = {f"{name}_{key}": n for name in ("value", "shift") for key, n in asdict(getattr(self, name)).items()}
        shown = {name: f"{n:.6g}" for name, n in numbers.items() if name != "shift_n"}
        flags = {"noticed": int(self.noticed), "past": int(self.past)}
        return {"damage": self.kind, "size": self.size, "signal": self.signal} | shown | flags


def damages() -> list[tuple[str, float]]:
    """Every kind at every size."""
    return [*product(KINDS, SIZES), *((WEIGHTS, size) for size in NOISE)]


def plant(
    subject: Subject, base: StageResult, prompts: Sequence[str], tokens: int, seed: int
) -> Iterator[tuple[str, float, StageResult]]:
    """The signals under every damage, one after another.

    Args:
        subject: base, undamaged.
        base: what it answered and measured.
        prompts, tokens: what a model with noisy weights is asked, as base was.
        seed: of the damage.
    """
    for kind, size in product(KINDS, SIZES):
        answers = damaged(subject.language_model, base.answers, kind, size, seed)
        signals = [*free_answers.measure(subject, answers), *alive.measure(subject, answers)]
        yield kind, size, StageResult(kind, tuple(answers), tuple(signals))
    for size in NOISE:
        noisy = replace(subject, gates=partial(noisy_weights, subject.language_model, size, seed))
        yield WEIGHTS, size, evaluate(noisy, prompts, tokens)


def findings(
    kind: str, size: float, damage: StageResult, base: StageResult, floors: Floors, resamples: int, seed: int
) -> list[Finding]:
    """Every signal of a damaged stage, set against base's."""
    summary = summarise(damage, base, resamples, seed)
    return [
        Finding(
            kind,
            size,
            name,
            summary.values[name],
            summary.deltas[name],
            _noticed(name, summary.deltas[name]),
            _past(name, summary, floors),
        )
        for name in summary.values
        if name in LIMITED or name in COUNTED or name in ("accuracy", "unscorable_share", "persona_log_ratio")
    ]


def table(found: Sequence[Finding]) -> str:
    """A Markdown table: one line a damage and size, one column a signal; noticed ones marked *, past a limit bold."""
    names = [name for name in (*LIMITED, *COUNTED) if any(entry.signal == name for entry in found)]
    lines = ["| damage | size | " + " | ".join(names) + " |", "| --- " * (len(names) + 2) + "|"]
    for kind, size in dict.fromkeys((entry.kind, entry.size) for entry in found):
        at = {entry.signal: entry for entry in found if (entry.kind, entry.size) == (kind, size)}
        lines.append(f"| {kind} | {size:g} | " + " | ".join(_cell(at.get(name)) for name in names) + " |")
    return "\n".join(lines) + "\n"


def _cell(entry: Finding | None) -> str:
    if entry is None:
        return ""
    text = f"{entry.value.value:.2f}{'*' if entry.noticed else ''}"
    return f"**{text}**" if entry.past else text


def _noticed(name: str, shift: Estimate) -> bool:
    if name in COUNTED:
        return shift.excludes_zero
    rises = LIMITED[name].rises if name in LIMITED else name == "unscorable_share"
    return shift.low > 0 if rises else shift.high < 0


def _past(name: str, summary: StageSummary, floors: Floors) -> bool:
    value = summary.values[name].value
    return name in LIMITED and LIMITED[name].past(value, floors, value - summary.deltas[name].value)
