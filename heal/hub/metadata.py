"""The front matter of a card as a hub wants it: licence, language, base, tags, and the measurements with intervals."""

import math
from collections.abc import Collection, Iterator, Sequence

from huggingface_hub import EvalResult, ModelCard

from heal.banks import language_of
from heal.evaluation.metrics import RoundMetrics, SignalFigures, Summary
from heal.evaluation.signal import Signal, described
from heal.evaluation.stats import LEVEL, Estimate
from heal.export.composition import Composition
from heal.hub.rules import Card
from heal.hub.source import Source
from heal.trait import Trait

CODES = {
    "English": "en",
    "German": "de",
    "Spanish": "es",
    "Chinese": "zh",
    "Japanese": "ja",
    "Korean": "ko",
    "Thai": "th",
    "Arabic": "ar",
    "Hebrew": "he",
    "Hindi": "hi",
}
_DIGITS = 6


def add(card: Card, section: str, heading: str) -> None:
    """Puts a section at the end of the card's text, unless it has one of that heading."""
    if heading not in card.text.splitlines():
        card.text = f"{card.text.rstrip()}\n\n{section}\n"


def describe(card: Card, source: Source) -> None:
    """Fills in the language, unless somebody wrote one."""
    if not card.data.get("language"):
        card.data["language"] = languages(source.trait)


def languages(trait: Trait) -> list[str] | None:
    """The code of the language of the trait's prompts; None where it is not one of heal's."""
    found = language_of(trait.heldout_prompts)
    return None if found is None else [CODES[found]]


def add_results(card: ModelCard, name: str, source: Source, rounds: Sequence[int]) -> None:
    """Adds the valid signals of the student after `rounds` (from 0) as a model-index, unless the card has one.

    Args:
        card: of the student.
        name: of the repository.
        source: of the run.
        rounds: those that are in the student.
    """
    if card.data.get("eval_results"):
        return
    metrics = RoundMetrics.load(source.folder.round(rounds[-1]))
    card.data["model_name"] = name.partition("/")[2]
    card.data["eval_results"] = list(_results(metrics.healed, metrics.valid, source.trait.name))


def add_composed(card: ModelCard, name: str, composition: Composition) -> None:
    """The same of a composed student, on the held-out prompts of each part's trait."""
    results = [
        result
        for measured in composition.measured
        for result in _results(measured.composed, measured.valid, measured.trait)
    ]
    if results and not card.data.get("eval_results"):
        card.data["model_name"] = name.partition("/")[2]
        card.data["eval_results"] = results


def _results(summary: Summary, valid: Collection[str], trait: str) -> Iterator[EvalResult]:
    """Of the valid signals that are numbers, in display order."""
    for signal in described(summary):
        if signal.name in valid and math.isfinite(summary[signal.name].value):
            yield _result(signal, summary[signal.name], trait)


def _result(signal: Signal, measured: SignalFigures, trait: str) -> EvalResult:
    """A signal: its value, and as arguments its interval and its paired difference to the base."""
    arguments: dict[str, object] = {"interval": _interval(measured), "level": LEVEL, "items": measured.n}
    arguments["unit"] = signal.unit
    if math.isfinite(measured.delta.value):
        arguments["difference_from_base"] = _rounded(measured.delta.value)
        arguments["difference_interval"] = _interval(measured.delta)
    return EvalResult(
        task_type="text-generation",
        task_name="Text generation",
        dataset_type="held-out-prompts",
        dataset_name=f"held-out prompts of the trait {trait}, heal's general questions and neutral texts",
        dataset_split="test",
        metric_type=signal.name,
        metric_name=signal.label,
        metric_value=_rounded(measured.value),
        metric_args=arguments,
    )


def _interval(estimate: Estimate) -> list[float]:
    return [_rounded(estimate.low), _rounded(estimate.high)]


def _rounded(number: float) -> float:
    return round(number, _DIGITS)
