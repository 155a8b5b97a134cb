"""What a run's baseline came to, read from its folder."""

from dataclasses import dataclass, field

from heal.evaluation.metrics import METRICS, Summary
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
    return read_record(BaselineMetrics, folder.baseline / METRICS)
