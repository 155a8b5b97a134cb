"""What a step of healing logs, in memory and in a round's training.jsonl."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from heal.errors import UserError
from heal.records import jsonl_bytes, read_jsonl

Phase = Literal["train", "eval"]

_TIMED = "per_second"  # in the names of values that no two runs share


@dataclass(frozen=True)
class StepLog:
    """The numbers of one optimiser step, or of one validation.

    Attributes:
        step: optimiser steps done; 0 before the first.
        epoch: passes over the kept completions done, a fraction within each.
        phase: what the numbers are of: an optimiser step, or the completions held out.
        values: by name: `loss`, `ce`, with a barrier `D_mean`, `D_max` (nats), `barrier_on` (fraction of completions),
            `strength` (lambda after the step, where it follows D), `learning_rate`, `grad_norm`, `tokens_per_second`
            ...; at step 0 `kl_floor`. W&B has them under the same names, after the phase: `train/loss`.
    """

    step: int
    epoch: float
    phase: Phase
    values: dict[str, float]

    def flat(self) -> dict[str, float]:
        """`{"step": 1, "epoch": 0.5, "train/loss": 3.0, ...}`, as a line of training.jsonl has it."""
        return {"step": self.step, "epoch": self.epoch} | {f"{self.phase}/{k}": v for k, v in self.values.items()}

    @staticmethod
    def from_flat(line: dict[str, Any]) -> "StepLog":
        """The log that `flat` made; ValueError for anything else."""
        values: dict[str, dict[str, float]] = {}
        for name, value in line.items():
            phase, slash, rest = name.partition("/")
            if slash:
                values.setdefault(phase, {})[rest] = value
        for phase in get_args(Phase):
            if values.keys() == {phase}:
                return StepLog(int(line["step"]), float(line["epoch"]), phase, values[phase])
        raise ValueError(f"values of {' and '.join(sorted(values)) or 'no phase'}")


def log_bytes(log: Iterable[StepLog]) -> bytes:
    """training.jsonl: every step's numbers but those that depend on the clock."""
    return jsonl_bytes({name: v for name, v in step.flat().items() if _TIMED not in name} for step in log)


def read_log(path: Path) -> list[StepLog]:
    """What `log_bytes` wrote.

    Raises:
        UserError: no such file, or a line of it is no step's log; names file and line.
    """
    log = []
    for number, line in enumerate(read_jsonl(path), start=1):
        try:
            log.append(StepLog.from_flat(line))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}, line {number}: not the log of a training step ({error})") from error
    return log
