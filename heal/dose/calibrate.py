"""Iso-KL calibration: the coefficient whose steered paths spend a given KL budget (docs/method.md, Dose)."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from heal.config import CalibrationConfig
from heal.decoding import Decoded, decode
from heal.dose.calibration import Calibration, PathDivergence
from heal.dose.root import COLD, WARM, find_coefficient
from heal.models.language_model import LanguageModel
from heal.parallel import over_rows
from heal.progress import Progress, silent
from heal.randomness import generator
from heal.scoring import completion_states, token_divergences
from heal.steering.intervention import ADDITIVE, Dosing, Intervention

Ids = Sequence[int]

_RESAMPLES = 100  # of the bootstrap that says how far p95 can be trusted

# Divergences at several coefficients, measured side by side.
Measure = Callable[[Sequence[float]], Sequence[PathDivergence]]


@dataclass(frozen=True)
class Goal:
    """What a calibration looks for, and when it gives up.

    Attributes:
        target: p95 of the per-token KL, nats.
        tolerance: accepted distance from it, nats.
        candidates: coefficients measured in one pass.
        max_passes: passes before giving up.
        reference: what "off" is, `student` or `base`, for the record.
    """

    target: float = 1.0
    tolerance: float = 0.05
    candidates: int = 4
    max_passes: int = 6
    reference: Literal["student", "base"] = "student"

    @staticmethod
    def of(settings: CalibrationConfig) -> "Goal":
        """The recipe's."""
        return Goal(settings.target, settings.tolerance, settings.candidates, settings.max_passes, settings.reference)


def path_divergences(
    language_model: LanguageModel,
    intervention: Intervention,
    coefficients: Sequence[float],
    prompts: Sequence[Ids],
    tokens: int,
    off: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[PathDivergence]:
    """Decodes greedily under the intervention, then scores those paths with it off; all coefficients side by side.

    What the path's tokens were chosen from while decoding is the distribution with the intervention on.

    Args:
        language_model: the student.
        intervention: what is being dosed.
        coefficients: its raw coefficients.
        prompts: prompt ids.
        tokens: greedy tokens decoded per prompt.
        off: context in which the reference answers (default: the student without the intervention).
    """
    asked = [prompt for _ in coefficients for prompt in prompts]
    doses = [c for c in coefficients for _ in prompts]

    def divergences(share: range) -> list[_Path]:
        on = [asked[row] for row in share]
        paths = decode(language_model, on, tokens, intervention, [doses[row] for row in share], keep_states=True)
        return _divergences(language_model, paths, on, off)

    paths, count = over_rows(len(asked), divergences), len(prompts)
    return [
        _pooled(c, paths[start : start + count])
        for c, start in zip(coefficients, range(0, len(paths), count), strict=True)
    ]


def prompt_divergence(
    language_model: LanguageModel, shifted: Sequence[Ids], neutral: Sequence[Ids], tokens: int
) -> PathDivergence:
    """What a system prompt spends: greedy paths under it, and their KL to the same paths after the neutral prompt.

    Args:
        language_model: the model as it stands.
        shifted, neutral: ids of the same prompts under either system prompt.
        tokens: greedy tokens decoded per prompt.

    Returns:
        the statistics, at `c` 1: a prompt has no coefficient.
    """

    def divergences(share: range) -> list[_Path]:
        paths = decode(language_model, [shifted[row] for row in share], tokens, keep_states=True)
        return _divergences(language_model, paths, [neutral[row] for row in share], nullcontext)

    return _pooled(1.0, over_rows(len(shifted), divergences))


@dataclass(frozen=True)
class _Path:
    """What counts of a decoded path: the KL of its tokens, `[N]` nats, None without tokens; whether it was finite."""

    kl_N: Tensor | None
    finite: bool


def _divergences(
    language_model: LanguageModel,
    paths: Sequence[Decoded],
    prompts: Sequence[Ids],
    off: Callable[[], AbstractContextManager[None]],
) -> list[_Path]:
    """`KL(on || off)` of decoded paths whose states were kept; off is the model in `off`, after `prompts`."""
    said = [row for row, path in enumerate(paths) if path.ids]
    with off():
        off_states = completion_states(language_model, [prompts[row] for row in said], [paths[row].ids for row in said])
    on_states = [states for row in said if (states := paths[row].states_ND) is not None]
    kl = dict(zip(said, token_divergences(language_model, on_states, off_states), strict=True))
    return [_Path(kl.get(row), path.finite) for row, path in enumerate(paths)]


def _pooled(c: float, paths: Sequence[_Path]) -> PathDivergence:
    """The statistics of one coefficient's rows; a row whose logits were not finite is far above any target."""
    by_row = [path.kl_N.double() for path in paths if path.kl_N is not None]
    if not all(path.finite for path in paths) or not by_row:
        return PathDivergence(c, math.inf, math.inf, math.inf, math.inf, 0)
    kl_N = torch.cat(by_row)
    p50, p95 = torch.quantile(kl_N, torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
    return PathDivergence(c, p50, p95, float(kl_N.mean()), float(kl_N.max()), len(kl_N), p95_error(by_row))


def p95_error(by_row: Sequence[Tensor]) -> float:
    """Standard error of the pooled p95, by a bootstrap over rows; 0 where there is one alone."""
    if len(by_row) < 2:
        return 0.0
    drawn = torch.randint(len(by_row), (_RESAMPLES, len(by_row)), generator=generator("p95"))
    p95s = [torch.quantile(torch.cat([by_row[row] for row in rows]), 0.95) for rows in drawn.tolist()]
    return float(torch.stack(p95s).std())


def calibrate(
    measure: Measure,
    audit: Measure | None,
    goal: Goal,
    *,
    start: float | None = None,
    dosing: Dosing = ADDITIVE,
    progress: Progress = silent,
) -> Calibration:
    """Finds `c_star` with `p95(c_star) = target`, then audits it.

    What does something even at coefficient 0 is measured there first, in a pass of its own.

    Args:
        measure: coefficients -> divergences on the calibration prompts.
        audit: the same on held-out prompts, or None.
        goal: what is looked for, and how long.
        start: warm start, the last round's `c_star`; None or 0: cold.
        dosing: how the coefficient acts.
        progress: told (passes done, the most there can be).
    """
    history: list[PathDivergence] = []
    error: dict[float, float] = {}  # standard error of p95 by coefficient
    passes, most = 0, goal.max_passes + (not dosing.vanishes) + (audit is not None)

    def statistic(coefficients: Sequence[float]) -> list[float]:
        nonlocal passes
        divergences = measure(coefficients)
        history.extend(divergences)
        error.update((c, divergence.p95_error) for c, divergence in zip(coefficients, divergences, strict=True))
        passes += 1
        progress(passes, most)
        return [divergence.p95 for divergence in divergences]

    first, ratio = (start, WARM) if start else (1.0, COLD)
    zero = None if dosing.vanishes else statistic([0.0])[0]
    search = find_coefficient(
        statistic,
        goal.target,
        goal.tolerance,
        first,
        ratio,
        goal.candidates,
        goal.max_passes,
        largest=dosing.largest,
        zero=zero,
        falling=dosing.falling,
        error=error.__getitem__,
    )
    audited = audit([search.c])[0] if audit is not None else None
    progress(most, most)
    return Calibration(
        search.c,
        search.value,
        goal.target,
        goal.tolerance,
        search.outcome,
        passes,
        tuple(history),
        audited,
        goal.reference,
    )
