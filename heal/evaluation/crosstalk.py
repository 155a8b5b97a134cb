"""The cross-talk of several traits on base: what each one's vector, at equal KL, does to the readout of every one."""

from dataclasses import dataclass
from pathlib import Path

from heal.evaluation.results import Rows
from heal.evaluation.stats import Estimate
from heal.records import read_record, record_bytes
from heal.run.files import Files

FILE = "crosstalk.json"


@dataclass(frozen=True)
class OwnVector:
    """One trait's own vector on base.

    Attributes:
        c_star: the coefficient at which it spends the recipe's KL.
        p95: of the per-token KL there, nats.
        shifts: the paired difference to base of each trait's persona log-ratio under it, by trait; nats per token.
    """

    c_star: float
    p95: float
    shifts: dict[str, Estimate]


@dataclass(frozen=True)
class Crosstalk:
    """The vector of each trait, by its name."""

    vectors: dict[str, OwnVector]

    def files(self) -> Files:
        return {FILE: record_bytes(self)}

    @staticmethod
    def load(folder: Path) -> "Crosstalk":
        """UserError where the file is not what `files` wrote."""
        return read_record(Crosstalk, folder / FILE)

    @property
    def coefficients(self) -> dict[str, float]:
        """`c_i` by trait."""
        return {trait: own.c_star for trait, own in self.vectors.items()}

    def rows(self) -> Rows:
        """One row for each vector and readout, with the interval."""
        return [
            {"vector": trait, "c_star": own.c_star, "p95": own.p95, "readout": read}
            | {"shift": shift.value, "low": shift.low, "high": shift.high, "n": shift.n}
            for trait, own in self.vectors.items()
            for read, shift in own.shifts.items()
        ]

    def lines(self) -> list[str]:
        """A line for each vector under a header, as text of even columns."""
        table = [["vector of", "c*", "p95 KL", *self.vectors]]
        for trait, own in self.vectors.items():
            shifts = [f"{shift:+.3f}" for shift in own.shifts.values()]
            table.append([trait, f"{own.c_star:.3g}", f"{own.p95:.2f}", *shifts])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
