"""Places to steer at, what steering does there, and which to take: numbers alone, no model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from heal.config import SteerConfig
from heal.evaluation.results import Rows
from heal.evaluation.stats import Estimate
from heal.records import read_record, record_bytes
from heal.run.files import Files
from heal.steering.settings import settled

FILE = "place.json"
METHOD, BAND = "mean_diff", (0.45, 0.55)  # of the place that the others are held against, where the recipe says none

CENTRES = (0.3, 0.6, 0.7, 0.8)  # of the bands that are tried beside it

Fractions = tuple[float, float]

_HEADER = (
    ("method", "band", "blocks", "c*", "p95 KL"),
    ("gain", "trait per nat", "trait over base", "relevance", "tail perplexity", "on prompt", "looping", ""),
)
_LEFT = 3  # columns of words; numbers are aligned right


@dataclass(frozen=True)
class Place:
    """Where and how: a method in a band, given as fractions of the depth and as blocks."""

    method: str
    band: Fractions
    blocks: tuple[int, ...]

    @property
    def words(self) -> str:
        """As keys of the recipe."""
        return f"steer.method={self.method} steer.band=[{self.band[0]:g},{self.band[1]:g}]"


@dataclass(frozen=True)
class Steered:
    """What a vector does at its dose.

    Attributes:
        place: where it acts.
        first: whether it is the place that the others are held against: the recipe's, or the default one.
        c_star: the coefficient.
        kl: the p95 of the per-token KL there, nats.
        miss: in words, that no coefficient reaches the target; empty where one does.
        trait: the persona log-ratio, nats per token.
        shift: its paired difference to base's answers.
        relevance: the same of their relevance, nats per token.
        gain: `shift`, less what an answer lost of its relevance, for each nat of p95 KL, 1 per token.
        more: what `gain` is above that of the first place; 0 for that itself.
        tail_perplexity, identified_share, repetition_share: of the answers.
        incoherent: what is past a limit of coherence, in words.
    """

    place: Place
    first: bool
    c_star: float
    kl: float
    miss: str
    trait: Estimate
    shift: Estimate
    relevance: Estimate
    gain: Estimate
    more: Estimate
    tail_perplexity: float
    identified_share: float
    repetition_share: float
    incoherent: tuple[str, ...]

    @property
    def per_nat(self) -> Estimate:
        """The shift of the trait for each nat of p95 KL, 1 per token."""
        shift, nats = self.shift, self.kl
        return Estimate(ratio(shift.value, nats), ratio(shift.low, nats), ratio(shift.high, nats), shift.n)

    @property
    def works(self) -> bool:
        """Whether the interval of the shift lies above 0."""
        return self.shift.low > 0

    @property
    def flaw(self) -> str:
        """In words, why a run should not steer there; empty where it may."""
        if not self.works:
            return f"the trait does not shift ({self.shift:+.3f} nats/token)"
        if self.miss:
            return f"the dose is out of reach ({self.miss})"
        return f"the answers are not coherent ({'; '.join(self.incoherent)})" if self.incoherent else ""

    @property
    def sound(self) -> bool:
        """Whether the trait shifts there, at the dose that was asked for, and the answers stay coherent."""
        return not self.flaw


@dataclass(frozen=True)
class Placed:
    """The place that a run steers at.

    Attributes:
        place: the chosen one.
        why: in words.
        tried: every place that was tried, the one that the others are held against first; empty where none was.
    """

    place: Place
    why: str
    tried: tuple[Steered, ...] = ()

    def files(self) -> Files:
        return {FILE: record_bytes(self)}

    @staticmethod
    def load(folder: Path) -> "Placed":
        """UserError where the file is not what `files` wrote."""
        return read_record(Placed, folder / FILE)


def where(steer: SteerConfig, folder: Path) -> tuple[str, Fractions]:
    """The method and the band that a run steers with: those of its recipe, or those that it chose.

    Raises:
        UserError: `folder` does not hold what the run chose.
    """
    if not steer.open:
        return settled(steer)
    place = Placed.load(folder).place
    return place.method, place.band


def bands_around(centres: Sequence[float], first: Fractions) -> tuple[Fractions, ...]:
    """The first band, and bands of its width around each centre, cut off at the ends of the depth."""
    half = (first[1] - first[0]) / 2
    around = ((round(max(0.0, one - half), 3), round(min(1.0, one + half), 3)) for one in centres)
    return tuple(dict.fromkeys((first, *around)))


def choose(tried: Sequence[Steered]) -> Placed:
    """The first place, unless it is not sound or a sound one gains more, with the whole interval of the difference."""
    first, *_ = tried
    sound = [one for one in tried if one.sound]
    if not sound:
        return Placed(first.place, f"{first.flaw}, and no other place is better", tuple(tried))
    best = max(sound, key=lambda one: one.gain.value)
    if not first.sound:
        return Placed(best.place, f"at {first.place.words} {first.flaw}", tuple(tried))
    if best is first or not best.more.low > 0:
        return Placed(first.place, "no other place gains more beyond noise", tuple(tried))
    return Placed(best.place, f"gains {best.more:+.3f} per nat more than {first.place.words}", tuple(tried))


def place_rows(placed: Placed) -> Rows:
    """One row for each place that was tried; `gain` and `more` with their intervals."""
    return [
        {"method": one.place.method, "low": one.place.band[0], "high": one.place.band[1]}
        | {"chosen": one.place == placed.place, "c_star": one.c_star, "p95": one.kl, "shift": one.shift.value}
        | {"relevance": one.relevance.value, "gain": one.gain.value, "gain_low": one.gain.low}
        | {"gain_high": one.gain.high, "more": one.more.value, "more_low": one.more.low, "more_high": one.more.high}
        | {"tail_perplexity": one.tail_perplexity, "identified_share": one.identified_share}
        | {"repetition_share": one.repetition_share, "flaw": one.flaw}
        for one in placed.tried
    ]


def table(steered: Sequence[Steered]) -> list[str]:
    """One line a method and band, under a header; empty without any."""
    rows = [header(), *(cells(one) for one in steered)] if steered else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < _LEFT else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row[:-1], widths, strict=False))
        ).rstrip()
        + f"  {row[-1]}".rstrip()
        for row in rows
    ]


def header() -> list[str]:
    """What `cells` are; the last column is for remarks."""
    return [name for part in _HEADER for name in part]


def cells(one: Steered) -> list[str]:
    """What steering does at a place, as texts."""
    blocks = one.place.blocks
    notes = [*(["out of reach"] if one.miss else []), *one.incoherent]
    return [
        one.place.method,
        f"[{one.place.band[0]:g},{one.place.band[1]:g}]",
        f"{blocks[0]}-{blocks[-1]}" if len(blocks) > 1 else str(blocks[0]),
        f"{one.c_star:.3g}",
        f"{one.kl:.2f}",
        f"{one.gain:+.3f}",
        f"{one.per_nat.value:+.3f}",
        f"{one.shift:+.3f}",
        f"{one.relevance.value:+.3f}",
        f"{one.tail_perplexity:.1f}",
        f"{one.identified_share:.2f}",
        f"{one.repetition_share:.2f}",
        "; ".join(notes),
    ]


def ratio(value: float, nats: float) -> float:
    """`value / nats`; NaN without a KL."""
    return value / nats if nats > 0 else math.nan
