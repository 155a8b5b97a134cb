"""Chooses, on base and on items held apart, the way in which a model answers a forced choice best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heal.evaluation.asking.way import Asking, ForcedChoice, Item, Scored, Tried, centred
from heal.evaluation.probe import NoSlot
from heal.evaluation.signal import MIN_MASS
from heal.evaluation.stats import estimate, informedness, point
from heal.evaluation.subject import Subject
from heal.progress import Progress, silent

LEVEL = 0.95  # of the interval that must lie above 0, for all ways together


def choose(
    choice: ForcedChoice, base: Subject, resamples: int, seed: int, progress: Progress = silent
) -> Asking | None:
    """The most informative valid way; if none is valid, the most informative one, which is then marked as not valid.

    Where the model may think (`evaluation.thinking`) only ways that allow it are tried, if the choice has any. A way in
    which no item could be scored would say nothing at any stage: it is taken only where all are such.

    Args:
        choice: what is asked.
        base: the base stage.
        resamples, seed: of the bootstrap.
        progress: told (ways tried, ways).

    Returns:
        None where the tokenizer has no slot for any way.
    """
    aloud = [way for way in choice.ways.values() if way.thinks and base.setup.thinking]
    ways = aloud or list(choice.ways.values())
    scored: dict[str, _Candidate] = {}
    for done, way in enumerate(ways, start=1):
        try:
            found = {} if way.name in scored else way.ask_all(base, choice.apart)
        except NoSlot:
            continue
        for name, plain in found.items():
            scored[name] = _Candidate(name, (), plain)
            if choice.centred:
                offset = leaning(plain)
                scored[f"{name}, centred"] = _Candidate(name, offset, centred(plain, offset))
        progress(done, len(ways))
    if not scored:
        return None
    tried = {
        label: judge(candidate.scored, choice.apart, len(scored), resamples, seed)
        for label, candidate in scored.items()
    }
    speaking = {label: tried[label] for label in tried if not scored[label].scored.score_NK.isnan().all()}
    label = most_informative(speaking or tried)
    return Asking(scored[label].way, scored[label].offset, label, tried)


@dataclass(frozen=True)
class _Candidate:
    way: str
    offset: tuple[float, ...]
    scored: Scored


def leaning(scored: Scored) -> tuple[float, ...]:
    """The mean score of each option over the items that were scored, less the mean of these means; nats."""
    mean_K = scored.score_NK.nanmean(0)
    return tuple((mean_K - mean_K.mean()).tolist())


def judge(scored: Scored, items: Sequence[Item], ways: int, resamples: int, seed: int) -> Tried:
    """The figures of one way, and whether they are valid.

    The interval of informedness is as wide as `ways` looks at the same items require (Bonferroni).
    """
    chosen, right = scored.chosen(), [item.right for item in items]
    values = informedness(chosen, right)
    level = 1 - (1 - LEVEL) / ways
    known = estimate(values, "mean", resamples, seed, level)
    halves = tuple(point(informedness(chosen[half::2], right[half::2]), "mean") for half in (0, 1))
    mass = None if scored.mass_N is None else float(scored.mass_N.mean())
    accuracy = sum(choice == answer for choice, answer in zip(chosen, right, strict=True)) / len(right)
    enough = mass is None or mass >= MIN_MASS
    stable = min(halves) > 0
    on_options = "no slot, so no mass" if mass is None else f"mass on the options {mass:.3f}, {MIN_MASS:g} required"
    why = (
        f"{on_options}; on {len(items)} items held apart informedness {known:+.3f} ({level:.1%} interval, {ways} ways "
        f"tried; 0 is chance), {halves[0]:+.2f} and {halves[1]:+.2f} on its halves"
    )
    return Tried(known, (halves[0], halves[1]), mass, accuracy, enough and known.low > 0 and stable, why)


def most_informative(tried: Mapping[str, Tried]) -> str:
    """The valid way with the highest informedness, the first of equals; of all where none is valid."""
    names = [name for name, figures in tried.items() if figures.valid] or list(tried)
    return max(names, key=lambda name: tried[name].informedness.value)
