"""The rows of a benchmark, and the table that grows by one line as each of them is measured."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of a benchmark; None where a quantity was not measured.

    Attributes:
        name: what was measured.
        seconds: wall seconds; None: it could not be measured, and the note says why.
        baseline_seconds: wall seconds of what it is compared with.
        ratio: this over the baseline: below 1, this is faster (a ratio of something else where the note says so).
        limit_share: see `heal.studies.bench.limits.Share`.
        tokens_per_second: tokens over seconds.
        peak_bytes: see `heal.studies.bench.timing.peak_bytes`.
        note: what a reader must know.
        limit: what `limit_share` is a share of: "arithmetic" or "memory".
    """

    name: str
    seconds: float | None
    baseline_seconds: float | None = None
    ratio: float | None = None
    limit_share: float | None = None
    tokens_per_second: float | None = None
    peak_bytes: int | None = None
    note: str = ""
    limit: str = ""


_WIDTHS = {"seconds": 8, "baseline s": 10, "ratio": 6, "of limit": 8, "limit": 10, "tokens/s": 9, "peak MiB": 9}
_NAME = 32  # the longest: history_decode_16 of llama-3.1-8b


class Table:
    """Aligned lines, the header before the first of them; columns have a width of their own, since no row waits."""

    def __init__(self, write: Callable[[str], None]):
        self._write, self._begun = write, False

    def add(self, row: Row) -> None:
        """Writes the line of `row`."""
        if not self._begun:
            self._line("name", list(_WIDTHS), "note")
            self._begun = True
        mebibytes = None if row.peak_bytes is None else row.peak_bytes / 2**20
        values = (row.seconds, row.baseline_seconds, row.ratio, row.limit_share)
        cells = [
            _shown(form, value) for form, value in zip(("{:.3f}", "{:.3f}", "{:.2f}", "{:.1%}"), values, strict=True)
        ]
        cells += [row.limit, _shown("{:,.0f}", row.tokens_per_second), _shown("{:,.1f}", mebibytes)]
        self._line(row.name, cells, row.note)

    def _line(self, name: str, cells: list[str], note: str) -> None:
        placed = [cell.rjust(width) for cell, width in zip(cells, _WIDTHS.values(), strict=True)]
        self._write("  ".join([name.ljust(_NAME), *placed, note]).rstrip())


def _shown(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)
