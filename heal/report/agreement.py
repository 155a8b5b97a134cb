"""How far a judge's scores agree with the persona log-ratio, answer by answer."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from heal.evaluation.readouts.judge import JUDGED_TRAIT
from heal.evaluation.signal import TRAIT
from heal.randomness import derive_seed
from heal.report.results import Answer, Results


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation over `n` answers, with its 95 % bootstrap interval over their prompts."""

    rho: float
    low: float
    high: float
    n: int


def judge_agreement(results: Results) -> Agreement | None:
    """Of the answers of every stage; None where no judge was asked, or the ranks do not vary."""
    answers = [*results.prompted_answers, *results.rounds[0].answers.get("base", [])]
    for finished in results.rounds:
        answers += [*finished.answers.get("steered", []), *finished.answers["healed"]]
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for answer in answers:
        if (pair := _pair(answer)) is not None:
            by_prompt.setdefault(answer.prompt, []).append(pair)
    clusters = [np.array(pairs) for pairs in by_prompt.values()]
    if not clusters:
        return None
    everything = np.concatenate(clusters)
    rho = _rho(everything)
    if not np.isfinite(rho):
        return None
    source = np.random.default_rng(derive_seed(results.recipe.run.seed, "judge agreement"))
    drawn = [
        _rho(np.concatenate([clusters[index] for index in source.integers(len(clusters), size=len(clusters))]))
        for _ in range(min(results.recipe.evaluation.resamples, 2000))
    ]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Agreement(rho, float(low), float(high), len(everything))


def _pair(answer: Answer) -> tuple[float, float] | None:
    """The judge's score and the persona log-ratio; None where either is not a number."""
    score, ratio = (answer.signals.get(name, math.nan) for name in (JUDGED_TRAIT.name, TRAIT))
    return (score, ratio) if math.isfinite(score) and math.isfinite(ratio) else None


def _rho(pairs: np.ndarray) -> float:
    """NaN where either side is constant."""
    if len(pairs) < 3 or (pairs == pairs[0]).all(axis=0).any():
        return float("nan")
    return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)
