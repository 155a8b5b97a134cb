"""Iso-KL calibration: the coefficient whose steered paths spend a given KL budget (SPEC section 4)."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from heal.decoding import decode
from heal.dose.root import Outcome, find_coefficient
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.scoring import completion_states, token_divergences
from heal.steering.intervention import Intervention

Ids = Sequence[int]


@dataclass(frozen=True)
class PathDivergence:
    """Per-token `KL(on || off)` pooled over prompts and positions of the steered paths, nats."""

    c: float
    p50: float
    p95: float
    mean: float
    max: float
    n: int


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        c_star: the coefficient.
        value: p95 there, nats.
        target: what it should be.
        tolerance: accepted distance.
        outcome: how the search ended, see `Search`; only `tolerance` is a hit.
        history: every evaluation in order.
        audit: the statistic at c_star on held-out prompts, if asked for.
        reference: what "off" was, `student` or `base`.
    """

    c_star: float
    value: float
    target: float
    tolerance: float
    outcome: Outcome
    history: tuple[PathDivergence, ...]
    audit: PathDivergence | None
    reference: str

    @property
    def on_target(self) -> bool:
        return self.outcome == "tolerance"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Calibration":
        history = tuple(PathDivergence(**entry) for entry in content["history"])
        audit = None if content["audit"] is None else PathDivergence(**content["audit"])
        return Calibration(**(content | {"history": history, "audit": audit}))


def path_divergence(
    language_model: LanguageModel,
    intervention: Intervention,
    coefficient: float,
    prompts: Sequence[Ids],
    tokens: int,
    batch_size: int,
    batch_tokens: int,
    off: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> PathDivergence:
    """Decodes greedily under the intervention, then scores those paths with it on and off.

    Args:
        language_model: the student.
        intervention: what is being dosed.
        coefficient: its raw coefficient.
        prompts: prompt ids.
        tokens: greedy tokens decoded per prompt.
        batch_size: rows decoded side by side.
        batch_tokens: tokens of a scoring pass.
        off: context in which the reference answers (default: the student without the intervention).
    """
    paths = decode(language_model, prompts, tokens, intervention, [coefficient] * len(prompts), batch_size=batch_size)
    pairs = [(prompt, path.ids) for prompt, path in zip(prompts, paths, strict=True) if path.ids and path.finite]
    if len(pairs) < len(paths):  # a row whose logits were not finite: far above any target
        return PathDivergence(coefficient, math.inf, math.inf, math.inf, math.inf, 0)
    asked, said = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    on = completion_states(language_model, asked, said, batch_tokens, intervention, coefficient)
    with off():
        reference = completion_states(language_model, asked, said, batch_tokens)
    kl_N = torch.cat(token_divergences(language_model, on, reference)).double()
    p50, p95 = torch.quantile(kl_N, torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
    return PathDivergence(coefficient, p50, p95, float(kl_N.mean()), float(kl_N.max()), len(kl_N))


def calibrate(
    measure: Callable[[float], PathDivergence],
    audit: Callable[[float], PathDivergence] | None,
    target: float,
    tolerance: float,
    start: float,
    max_evaluations: int,
    reference: str,
    progress: Progress = silent,
) -> Calibration:
    """Finds `c_star` with `p95(c_star) = target`, then audits it.

    Args:
        measure: coefficient -> divergence on the calibration prompts.
        audit: the same on held-out prompts, or None.
        target: nats.
        tolerance: accepted distance, nats.
        start: warm start, the last round's `c_star` (1.0 when there is none).
        max_evaluations: evaluations before giving up.
        reference: what "off" is, for the record.
        progress: told (evaluations done, the most there can be).
    """
    history: list[PathDivergence] = []
    most = max_evaluations + (audit is not None)

    def statistic(c: float) -> float:
        history.append(measure(c))
        progress(len(history), most)
        return history[-1].p95

    search = find_coefficient(statistic, target, tolerance, start, max_evaluations)
    audited = audit(search.c) if audit is not None else None
    progress(most, most)
    return Calibration(search.c, search.value, target, tolerance, search.outcome, tuple(history), audited, reference)
