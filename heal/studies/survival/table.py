"""Survival and divergence by alpha as rows, Markdown and CSV."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from heal.markdown import markdown_table
from heal.studies.survival.curves import survival
from heal.studies.survival.rollouts import Trajectory, by_alpha

HEADER = (
    "alpha",
    "c",
    "n",
    "median KL",
    "p95 KL",
    "under target",
    "deaths",
    "censored",
    "half-life",
    "alive at the end",
)


@dataclass(frozen=True)
class Row:
    """One alpha.

    Attributes:
        alpha: multiple of the dose.
        coefficient: the coefficient that was applied, signed and within the method's bound.
        n: rollouts.
        kl_p50, kl_p95: of `KL(on || off)` over the tokens of all rollouts, nats; NaN if there are no tokens.
        under_target: fraction of these tokens whose KL is at most the target.
        deaths: rollouts that died.
        censored: rollouts that did not die: they ended by themselves, or reached the token budget.
        ended: the censored ones that ended by themselves.
        half_life: tokens; inf where survival stays above one half.
        survival: fraction alive at the end (Kaplan-Meier).
        low, high: its 95 % band; NaN where none exists.
    """

    alpha: float
    coefficient: float
    n: int
    kl_p50: float
    kl_p95: float
    under_target: float
    deaths: int
    censored: int
    ended: int
    half_life: float
    survival: float
    low: float
    high: float


def rows(trajectories: Iterable[Trajectory], target: float) -> list[Row]:
    """One row per alpha, the smallest first.

    Args:
        trajectories: rollouts at any alphas.
        target: the p95 of KL that the dose was calibrated to, nats.
    """
    return [_row(group, target) for group in by_alpha(trajectories).values()]


def _row(group: Sequence[Trajectory], target: float) -> Row:
    curve = survival(group)
    # A KL that is not finite counts as far above any target, as in calibration.
    kl_N = np.nan_to_num(
        np.array([nats for trajectory in group for nats in trajectory.kl]), nan=math.inf, posinf=math.inf
    )
    return Row(
        alpha=curve.alpha,
        coefficient=group[0].coefficient,
        n=curve.n,
        kl_p50=_quantile(kl_N, 0.5),
        kl_p95=_quantile(kl_N, 0.95),
        under_target=float((kl_N <= target).mean()) if len(kl_N) else math.nan,
        deaths=curve.deaths,
        censored=curve.n - curve.deaths,
        ended=sum(trajectory.ended and trajectory.death is None for trajectory in group),
        half_life=curve.median,
        survival=curve.survival[-1],
        low=curve.low[-1],
        high=curve.high[-1],
    )


def _quantile(kl_N: np.ndarray, level: float) -> float:
    if not len(kl_N):
        return math.nan
    # Between a number and inf nothing can be interpolated.
    return float(np.quantile(kl_N, level, method="linear" if np.isfinite(kl_N).all() else "higher"))


def markdown(table_rows: Sequence[Row], target: float) -> str:
    """The table in Markdown, with its caption."""
    return f"{markdown_table(HEADER, map(_cells, table_rows))}\n\n{caption(target)}\n"


def caption(target: float) -> str:
    """The meaning of the columns."""
    return (
        "alpha: multiple of the calibrated coefficient, 0 without the intervention; c: the coefficient that was "
        "applied, negative towards the negative persona and never beyond a method's largest one; n: rollouts; KL: "
        "KL(on || off) in nats over the tokens of all rollouts, those after a death included; under target: fraction "
        f"of these tokens with at most {target:g} nats, 0.95 where the dose is exact; censored: not dead, with the "
        "number that ended by themselves; half-life: tokens until half are dead; alive at the end: Kaplan-Meier after "
        "the last token that a rollout reached, with its 95 % log-log band, which does not exist where all or none are "
        "alive."
    )


def _cells(row: Row) -> list[str]:
    band = "" if math.isnan(row.low) else f" [{row.low:.2f}, {row.high:.2f}]"
    return [
        f"{row.alpha:g}",
        f"{row.coefficient:.3g}",
        str(row.n),
        _nats(row.kl_p50),
        _nats(row.kl_p95),
        "" if math.isnan(row.under_target) else f"{row.under_target:.2f}",
        str(row.deaths),
        f"{row.censored} ({row.ended} ended)",
        half_life(row.half_life),
        f"{row.survival:.2f}{band}",
    ]


def _nats(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def half_life(tokens: float) -> str:
    """`64`, or `not reached`."""
    return f"{tokens:g}" if math.isfinite(tokens) else "not reached"


def csv_text(table_rows: Sequence[Row]) -> str:
    """The rows as CSV with every digit; missing values are empty, a half-life that is not reached is `inf`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([item.name for item in fields(Row)])
    for row in table_rows:
        writer.writerow(
            ["" if isinstance(value, float) and math.isnan(value) else value for value in asdict(row).values()]
        )
    return text.getvalue()
