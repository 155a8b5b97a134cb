"""Chooses, on base and on items held apart, the way in which a model answers a forced choice best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from heal.evaluation.asking.way import Asking, ForcedChoice, Item, Scored, Tried, centred
from heal.evaluation.probe import NoSlot
from heal.evaluation.signal import MIN_MASS
from heal.evaluation.stats import estimate, informedness, point
from heal.evaluation.subject import Subject
from heal.progress import Progress, silent

FIRST = 28  # items after which a way may be given up
LEVEL = 0.95  # of the interval that must lie above 0, for all ways together


def choose(
    choice: ForcedChoice, base: Subject, resamples: int, seed: int, progress: Progress = silent
) -> Asking | None:
    """The most informative valid way; if none is valid, the most informative one, which is then marked as not valid.

    A way that, on the FIRST items, is worse than the best valid one so far with its whole interval is not asked the
    others.
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
    count = len(ways) * (2 if choice.centred else 1)
    looks = [choice.apart[:FIRST], choice.apart[FIRST:]]
    found: dict[str, _Candidate] = {}
    tried: dict[str, Tried] = {}
    for done, way in enumerate(ways, start=1):
        for items in looks if way.name not in found else []:
            try:
                asked = way.ask_all(base, items) if items else {}
            except NoSlot:
                break
            for name, scored in asked.items():
                for candidate in _candidates(name, _joined(found.get(name), scored), choice.centred):
                    found[candidate.label] = candidate
            of_way = [label for label, candidate in found.items() if candidate.way in asked]
            rivals = [figures for label, figures in tried.items() if label not in of_way and figures.valid]
            best = max((figures.informedness.value for figures in rivals), default=-math.inf)
            for label in of_way:
                given = choice.apart[: len(found[label].scored.score_NK)]
                tried[label] = judge(found[label].scored, given, count, resamples, seed)
            if all(tried[label].informedness.high < best for label in of_way):
                break
        progress(done, len(ways))
    if not tried:
        return None
    speaking = {label: tried[label] for label in tried if not found[label].scored.score_NK.isnan().all()}
    label = most_informative(speaking or tried)
    return Asking(found[label].way, found[label].offset, label, tried)


@dataclass(frozen=True)
class _Candidate:
    """A way, centred or not, and what base said in it."""

    way: str
    offset: tuple[float, ...]
    plain: Scored

    @property
    def label(self) -> str:
        return f"{self.way}, centred" if self.offset else self.way

    @property
    def scored(self) -> Scored:
        return centred(self.plain, self.offset)


def _candidates(way: str, plain: Scored, centred_too: bool) -> list[_Candidate]:
    return [_Candidate(way, (), plain), *([_Candidate(way, leaning(plain), plain)] if centred_too else [])]


def _joined(before: _Candidate | None, now: Scored) -> Scored:
    """What was said to the items before and to those now."""
    if before is None:
        return now
    mass = None if before.plain.mass_N is None or now.mass_N is None else torch.cat([before.plain.mass_N, now.mass_N])
    return Scored(torch.cat([before.plain.score_NK, now.score_NK]), mass)


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
