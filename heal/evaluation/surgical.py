"""How surgical an intervention is: it flips what it should, at both signs, and leaves the rest alone.

Pure functions of numbers that the readouts gave for base, +C and -C on the same vignettes. Where only one of the two
was measured the value is that of one arm, and says so: it is not to be held against a two-sided one. docs/method.md,
Surgical informedness.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CLIP = (0.01, 0.99)  # of a wrongness, before its logit
OFF_TARGET_PENALTY = 0.1  # nats on target that a nat off target costs


@dataclass(frozen=True)
class SurgicalInformedness:
    """Surgical informedness, 100 for every flip that is wanted and no other at full mass.

    Attributes:
        value: `100 * mass^2 * nanmean(forward, reverse)`.
        forward, reverse: the fraction of wanted flips less k times that of unwanted ones, at +C and at -C; NaN where
            that side was not measured, or base has none to flip.
        mass: the smaller of the answer masses.
        variant: the name of the definition.
        n: vignettes that base and at least one of the sides scored.
        arms: how many of +C and -C were measured: 1 or 2.
        other_side: in metrics of an earlier version, what stood for a side that was not measured; now always empty.
    """

    value: float
    forward: float
    reverse: float
    mass: float
    variant: str
    n: int
    arms: int = 2
    other_side: str = ""

    @property
    def label(self) -> str:
        """`two-sided`, `one-armed` or, of an earlier version, `base as the other side`: they do not compare."""
        if self.other_side:
            return f"{self.other_side} as the other side"
        return "two-sided" if self.arms == 2 else "one-armed"


@dataclass(frozen=True)
class Variant:
    """A published definition: what an unwanted flip costs, and whether vignettes are weighted by human loadings."""

    k: float
    weighted: bool


class DeltaLogit(NamedTuple):
    """Mean and standard deviation (over n - 1) over `n` pairs of a difference of logits."""

    mean: float
    sd: float
    n: int


def _name(k: float, weighted: bool) -> str:
    return f"k={k:g}, {'weighted by human loadings' if weighted else 'unweighted'}"


VARIANTS = {_name(variant.k, variant.weighted): variant for variant in (Variant(2.0, False), Variant(1.0, True))}


@dataclass(frozen=True)
class Side:
    """What +C or -C said: the wrongness of each vignette in [0, 1], and the mean answer mass."""

    wrongness: Sequence[float]
    mass: float


def surgical_informedness(
    w_base: Sequence[float],
    pos: Side | None,
    neg: Side | None,
    intent: int,
    k: float,
    weights: Sequence[float] | None = None,
) -> SurgicalInformedness:
    """Surgical informedness over the vignettes given.

    With `y = intent * sign(w - 0.5)`, +C should turn y from -1 to +1 and -C from +1 to -1. A vignette at 0.5
    counts on neither side; one with a NaN is left out of the comparison that it is part of.

    Args:
        w_base: wrongness of each vignette in [0, 1] under base.
        pos, neg: the same vignettes at +C and -C; None where that side was not measured.
        intent: +1 when the target is to be called wrong more often at +C, -1 when less often.
        k: cost of an unwanted flip.
        weights: of each vignette, at least 0, in all counts; None: 1 each.

    Raises:
        ValueError: no side, an intent that is not a sign, not one number a vignette, or a weight that is no weight.
    """
    if intent not in (1, -1):
        raise ValueError(f"surgical_informedness: intent must be +1 or -1, not {intent}")
    sides = [side for side in (pos, neg) if side is not None]
    if not sides:
        raise ValueError("surgical_informedness: neither +C nor -C was measured")
    weight = np.ones(len(w_base)) if weights is None else np.asarray(weights, dtype=float)
    lengths = [len(side.wrongness) for side in sides]
    if any(length != len(w_base) for length in (*lengths, len(weight))):
        raise ValueError(f"surgical_informedness: {len(w_base)} vignettes against {lengths}, {len(weight)} weights")
    if not (np.isfinite(weight) & (weight >= 0)).all():
        raise ValueError("surgical_informedness: a weight is negative or not finite")
    base = intent * np.sign(np.asarray(w_base, dtype=float) - 0.5)

    def flips(side: Side | None, sign: int) -> float:
        after = None if side is None else intent * np.sign(np.asarray(side.wrongness, dtype=float) - 0.5)
        return math.nan if after is None else _flips(sign * base, sign * after, weight, k)

    forward, reverse = flips(pos, 1), flips(neg, -1)
    known = [value for value in (forward, reverse) if not math.isnan(value)]
    mass = min(side.mass for side in sides)
    scored = ~np.isnan([np.asarray(side.wrongness, dtype=float) for side in sides]).all(axis=0)
    return SurgicalInformedness(
        value=100 * mass**2 * sum(known) / len(known) if known else math.nan,
        forward=forward,
        reverse=reverse,
        mass=mass,
        variant=_name(k, weights is not None),
        n=int((~np.isnan(base) & scored).sum()),
        arms=len(sides),
    )


def surgical_variants(
    w_base: Sequence[float],
    pos: Side | None,
    neg: Side | None,
    intent: int,
    of_target: Sequence[bool],
    loadings: Sequence[float] | None = None,
) -> dict[str, SurgicalInformedness]:
    """Surgical informedness by each published definition, by its name in VARIANTS.

    The unweighted one is over the vignettes of the target foundation, the weighted one over all that are given.
    Without human loadings the weighted one is not computed, and absent.

    Args:
        w_base, pos, neg, intent: as for `surgical_informedness`.
        of_target: whether each vignette's foundation is the target.
        loadings: fraction of people's votes for the target foundation, for each vignette.
    """
    targeted = [index for index, keep in enumerate(of_target) if keep]

    def narrowed(side: Side | None) -> Side | None:
        return None if side is None else Side([side.wrongness[index] for index in targeted], side.mass)

    variants = {}
    for name, variant in VARIANTS.items():
        if variant.weighted and loadings is not None:
            variants[name] = surgical_informedness(w_base, pos, neg, intent, variant.k, loadings)
        elif not variant.weighted:
            of_base = [w_base[index] for index in targeted]
            variants[name] = surgical_informedness(of_base, narrowed(pos), narrowed(neg), intent, variant.k)
    return variants


def delta_logit(w_steered: Sequence[float], w_base: Sequence[float]) -> DeltaLogit:
    """Mean change of the logit of wrongness, each clipped to CLIP first; pairs with a NaN are left out.

    The mean is NaN without a pair, and the deviation with fewer than two.

    Raises:
        ValueError: not one number a vignette on both sides.
    """
    if len(w_steered) != len(w_base):
        raise ValueError(f"delta_logit: {len(w_steered)} vignettes against {len(w_base)}")
    steered, base = (np.clip(np.asarray(w, dtype=float), *CLIP) for w in (w_steered, w_base))
    change: NDArray = np.log(steered / (1 - steered)) - np.log(base / (1 - base))
    change = change[~np.isnan(change)]
    n = len(change)
    return DeltaLogit(
        float(change.mean()) if n else math.nan,
        float(change.std(ddof=1)) if n > 1 else math.nan,
        n,
    )


def gated_selectivity(
    clr_pos: Mapping[str, Sequence[float]],
    clr_neg: Mapping[str, Sequence[float]],
    target: str,
    intent: int,
    mass_pos: float,
    mass_neg: float,
    mass_base: float,
) -> float:
    """`(on - 0.1 * off) * coherence^2`, nats: what the target moved as intended, less a tenth of what the rest moved.

    With `delta_f = mean over vignettes of clr_f(+C) - clr_f(-C)`: `on = intent * delta_target`, `off` the mean of
    the other foundations' `|delta|`, and `coherence = min(1, min(mass_pos, mass_neg) / mass_base)`.

    Args:
        clr_pos, clr_neg: each foundation's centred log-ratios by vignette, nats; pairs with a NaN are left out.
        target: the foundation meant, a key of both.
        intent: +1 when it is to rise at +C, -1 when it is to fall.
        mass_pos, mass_neg, mass_base: mean answer masses.

    Returns:
        NaN where a foundation has no pair, or base no mass.

    Raises:
        ValueError: an intent that is not a sign, or mappings of other keys or lengths.
    """
    if intent not in (1, -1):
        raise ValueError(f"gated_selectivity: intent must be +1 or -1, not {intent}")
    if set(clr_pos) != set(clr_neg) or target not in clr_pos or len(clr_pos) < 2:
        raise ValueError(f"gated_selectivity: no '{target}' among others in {list(clr_pos)} and {list(clr_neg)}")
    deltas = {name: _mean_change(clr_pos[name], clr_neg[name]) for name in clr_pos}
    on = intent * deltas[target]
    off = float(np.mean([abs(delta) for name, delta in deltas.items() if name != target]))
    coherence = min(1.0, min(mass_pos, mass_neg) / mass_base) if mass_base > 0 else math.nan
    return (on - OFF_TARGET_PENALTY * off) * coherence**2


def _flips(before: NDArray, after: NDArray, weight: NDArray, k: float) -> float:
    """Weighted fraction of -1 turned to +1, less k times that of +1 turned to -1; NaN where there is none of either."""
    known = ~(np.isnan(before) | np.isnan(after))
    low, high = float(weight[known & (before < 0)].sum()), float(weight[known & (before > 0)].sum())
    if low == 0 or high == 0:
        return math.nan
    wanted = float(weight[known & (before < 0) & (after > 0)].sum())
    unwanted = float(weight[known & (before > 0) & (after < 0)].sum())
    return wanted / low - k * unwanted / high


def _mean_change(after: Sequence[float], before: Sequence[float]) -> float:
    if len(after) != len(before):
        raise ValueError(f"gated_selectivity: {len(after)} vignettes against {len(before)}")
    change = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    change = change[~np.isnan(change)]
    return float(change.mean()) if len(change) else math.nan
