"""What a run's finished stages came to, read from its folder: metrics.json of the baseline and of each round."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from heal.evaluation.metrics import RoundMetrics, Summary
from heal.evaluation.validity import Validity
from heal.records import read_record
from heal.run.folder import RunFolder


@dataclass(frozen=True)
class BaselineMetrics:
    """What the rounds are held against.

    Attributes:
        base: the signals of the original model.
        prompted, opposite: the same under the positive and under the negative persona as system prompt.
        validity: of each signal, for this model.
    """

    base: Summary
    prompted: Summary
    opposite: Summary = field(default_factory=dict)
    validity: dict[str, Validity] = field(default_factory=dict)


def read_baseline(folder: RunFolder) -> BaselineMetrics:
    """UserError when the file is missing or not what heal writes."""
    return read_record(BaselineMetrics, folder.baseline / "metrics.json")


def read_round(folder: RunFolder, index: int) -> RoundMetrics:
    """The metrics of the round in rounds/<index>; the folder's name says which round it is, not the file.

    Raises:
        UserError: the file is missing or not what heal writes.
    """
    return replace(read_record(RoundMetrics, folder.round(index) / "metrics.json"), round=index + 1)


def read_rounds(folder: RunFolder, indices: Sequence[int] | None = None) -> list[RoundMetrics]:
    """The metrics of the given rounds, or of all that are finished."""
    return [read_round(folder, index) for index in (folder.rounds() if indices is None else indices)]
