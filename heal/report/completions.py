"""The completions of the rounds that a page shows: all of them where they fit, the same sample at every build else."""

from collections.abc import Sequence
from dataclasses import dataclass

from heal.generation.collect import Completion
from heal.report.numbers import size_of
from heal.report.results import Round

ROOM = 1_100_000  # bytes of all rounds' completions in a page
_MARKUP = 620  # bytes around a completion


@dataclass(frozen=True)
class Sample:
    """Completions of round `number` in their order, dropped ones first, and how many there are of each kind."""

    number: int
    rows: list[Completion]
    all_kept: int
    all_dropped: int

    @property
    def kept(self) -> int:
        """Kept ones that are shown."""
        return sum(row.kept for row in self.rows)

    @property
    def dropped(self) -> int:
        """Dropped ones that are shown."""
        return len(self.rows) - self.kept


def samples(rounds: Sequence[Round], room: int = ROOM) -> list[Sample]:
    """Of each round what fits into its part of `room` bytes."""
    return [_sample(finished, room // len(rounds)) for finished in rounds]


def _sample(finished: Round, room: int) -> Sample:
    """Where not all fit: dropped ones up to half of it, with every reason at least once, and kept ones."""
    rows = finished.completions
    kept, dropped = [row for row in rows if row.kept], [row for row in rows if not row.kept]
    size = sum(_MARKUP + size_of(row.prompt) + size_of(row.text) for row in rows)
    if size > room:
        count = max(2, len(rows) * room // size)
        firsts = {reason: row for row in reversed(dropped) for reason in row.dropped}
        spared = max(count // 2, count - len(kept))
        some = {row.index: row for row in (*firsts.values(), *spread(dropped, max(spared - len(firsts), 0)))}
        dropped_shown = [some[index] for index in sorted(some)]
        kept_shown = spread(kept, max(count - len(dropped_shown), 1))
    else:
        dropped_shown, kept_shown = dropped, kept
    return Sample(finished.number, [*dropped_shown, *kept_shown], len(kept), len(dropped))


def spread(rows: Sequence[Completion], count: int) -> list[Completion]:
    """At most `count` rows, evenly spaced."""
    if len(rows) <= count:
        return list(rows)
    return [rows[(2 * place + 1) * len(rows) // (2 * count)] for place in range(count)]
