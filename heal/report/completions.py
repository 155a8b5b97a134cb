"""A sample of a round's completions, the same at every build."""

from collections.abc import Sequence
from dataclasses import dataclass

from heal.generation.collect import Completion
from heal.report.results import Round

KEPT, DROPPED = 6, 10


@dataclass(frozen=True)
class Sample:
    """Some kept and some dropped completions of round `number`, and how many there are of each."""

    number: int
    kept: list[Completion]
    all_kept: int
    dropped: list[Completion]
    all_dropped: int


def samples(finished: Round) -> Sample:
    """Kept ones spread over the round; dropped ones spread over it too, with every reason at least once."""
    kept = [row for row in finished.completions if row.kept]
    dropped = [row for row in finished.completions if not row.kept]
    firsts = {reason: row for row in reversed(dropped) for reason in row.dropped}
    chosen = {row.index: row for row in (*firsts.values(), *spread(dropped, max(DROPPED - len(firsts), 0)))}
    shown = [chosen[index] for index in sorted(chosen)]
    return Sample(finished.number, spread(kept, KEPT), len(kept), shown, len(dropped))


def spread(rows: Sequence[Completion], count: int) -> list[Completion]:
    """At most `count` rows, evenly spaced."""
    if len(rows) <= count:
        return list(rows)
    return [rows[(2 * place + 1) * len(rows) // (2 * count)] for place in range(count)]
