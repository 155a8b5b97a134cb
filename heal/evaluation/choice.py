"""Which round is best, and whether another one is worth it: rules over the rounds' metrics, nothing else.

docs/method.md, The best round.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heal.evaluation.metrics import RoundMetrics
from heal.evaluation.stats import Estimate, paired_difference, point

if TYPE_CHECKING:
    from heal.config import RunConfig

BROKEN = ("not finite", "incoherent")  # verdicts of a round that is past a limit of coherence
NOT_VALID = "not valid"  # that of a coherent round whose model the trait's readout says nothing about
HOLDS = "holds"

# A trait score for each held-out prompt, in the same order everywhere; NaN where an answer could not be scored.
Scores = Sequence[float]


@dataclass(frozen=True)
class Choice:
    """The best round, and what it is worth where it was not chosen by the same prompts.

    Attributes:
        index: of the best round.
        halves: the rounds that either half of the prompts chooses.
        scores: the trait at each prompt, after the round that the half without it chooses.
        shift: these scores over base's.
        over_prompted: these scores less those of base under the positive persona; None where that was not measured.
    """

    index: int
    halves: tuple[int, int]
    scores: tuple[float, ...]
    shift: Estimate
    over_prompted: Estimate | None

    @property
    def agreed(self) -> bool:
        """Whether both halves of the prompts choose that round."""
        return self.halves == (self.index, self.index)


def best_round(
    verdicts: Sequence[str], trait: Sequence[Scores], base: Scores, prompted: Scores | None, resamples: int, seed: int
) -> Choice | None:
    """The round with the most of the trait among those that hold; None where none does. The first of equals.

    A round that was chosen for a figure flatters itself by it. The figure is therefore given by the prompts that did
    not choose: every other prompt chooses a round, the remaining ones score it, and the other way round; the two
    halves are averaged. The round itself is chosen by all prompts.

    Args:
        verdicts: the label of each round's verdict.
        trait: the scores of each round.
        base, prompted: those of base, and of base under the positive persona.
        resamples, seed: of the bootstrap over prompts; the choices stand still in it.
    """
    holding = [index for index, verdict in enumerate(verdicts) if verdict == HOLDS]
    if not holding:
        return None

    def most(prompts: Sequence[int]) -> int:
        values = {index: point([trait[index][prompt] for prompt in prompts], "mean") for index in holding}
        return max(holding, key=lambda index: -math.inf if math.isnan(values[index]) else values[index])

    places = range(len(base))
    halves = most(places[::2]), most(places[1::2])
    scores = [trait[halves[1 - place % 2]][place] for place in places]
    return Choice(
        most(places),
        halves,
        tuple(scores),
        paired_difference(scores, base, "mean", resamples, seed),
        None if prompted is None else paired_difference(scores, prompted, "mean", resamples, seed),
    )


def why_stop(rounds: Sequence[RoundMetrics], settings: "RunConfig") -> str | None:
    """Why no further round should be run, in a few words; None to go on.

    Args:
        rounds: the rounds so far.
        settings: `stop` says whether a run may end early at all; `stop_when_incoherent` after how many rounds in a row
            past a limit of coherence; `stop_on_plateau` when the trait shift of how many last rounds is no larger than
            before them, which is not asked where the trait's readout is not valid for the model. 0 asks for neither.
    """
    if not settings.stop:
        return None
    incoherent, plateau = int(settings.stop_when_incoherent), settings.stop_on_plateau
    if incoherent and len(rounds) >= incoherent and not any(_coherent(metrics) for metrics in rounds[-incoherent:]):
        past = f"round {len(rounds)} is" if incoherent == 1 else f"the last {incoherent} rounds are"
        return f"{past} past a limit of coherence ({rounds[-1].verdict.reason})"
    if plateau and len(rounds) > plateau and not any(metrics.verdict.label == NOT_VALID for metrics in rounds):
        shifts = [metrics.trait.delta.value for metrics in rounds]
        before, since = max(shifts[:-plateau]), max(shifts[-plateau:])
        if not since > before:
            return (
                f"the trait has not grown for {'a round' if plateau == 1 else f'{plateau} rounds'} "
                f"({since:+.3f} against {before:+.3f} nats/token)"
            )
    return None


def _coherent(metrics: RoundMetrics) -> bool:
    return metrics.verdict.label not in BROKEN
