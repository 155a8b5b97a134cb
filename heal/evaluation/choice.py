"""Which round is best, and whether another one is worth it: rules over the rounds' metrics, nothing else."""

from collections.abc import Sequence

from heal.evaluation.metrics import RoundMetrics

BROKEN = ("not finite", "incoherent")  # verdicts of a round that is past a limit of coherence
NOT_VALID = "not valid"  # that of a coherent round whose model the trait's readout says nothing about


def best_round(rounds: Sequence[RoundMetrics]) -> int | None:
    """The round with the largest trait shift among those that are coherent and whose shift is above zero.

    Among rounds on the trait-coherence front that are all past no limit, more of the trait is better; the
    first of equals. None where no round qualifies, or the trait's readout is not valid for the model.

    Returns:
        its index in `rounds`.
    """
    if _unreadable(rounds):
        return None
    eligible = [index for index, metrics in enumerate(rounds) if _coherent(metrics) and metrics.trait.delta.low > 0]
    return max(eligible, key=lambda index: (rounds[index].trait.delta.value, -index), default=None)


def why_stop(rounds: Sequence[RoundMetrics], plateau: int, when_incoherent: bool) -> str | None:
    """Why no further round should be run, in a few words; None to go on.

    Args:
        rounds: the rounds so far.
        plateau: stop when the trait shift of so many last rounds is no larger than before them; 0: never. Not asked
            where the trait's readout is not valid for the model.
        when_incoherent: stop after a round past a limit of coherence.
    """
    if not rounds:
        return None
    if when_incoherent and not _coherent(rounds[-1]):
        return f"round {len(rounds)} is past a floor of coherence ({rounds[-1].verdict.reason})"
    if plateau and len(rounds) > plateau and not _unreadable(rounds):
        shifts = [metrics.trait.delta.value for metrics in rounds]
        before, since = max(shifts[:-plateau]), max(shifts[-plateau:])
        if not since > before:
            return f"the trait has not grown for {plateau} rounds ({since:+.3f} against {before:+.3f} nats/token)"
    return None


def _coherent(metrics: RoundMetrics) -> bool:
    return metrics.verdict.label not in BROKEN


def _unreadable(rounds: Sequence[RoundMetrics]) -> bool:
    return any(metrics.verdict.label == NOT_VALID for metrics in rounds)
