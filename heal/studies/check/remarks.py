"""What is amiss with a model, a trait and a recipe, and what to change: one line each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from heal.evaluation.signal import PERSONA_SIZES, TRAIT
from heal.places.place import Steered
from heal.run.memory_plan import size
from heal.studies.check.cost import Cost
from heal.studies.check.endings import Endings
from heal.studies.check.read import Separation

FEW_END = 0.5  # fraction of answers that must end within the budget for nothing to be said of it
MUCH_MORE = 1.5  # times the recipe's shift per nat, from which another place is worth a line


@dataclass(frozen=True)
class Remark:
    """One thing that is amiss; `fatal` where it makes a run pointless."""

    text: str
    fatal: bool = False


def remarks(
    separations: Sequence[Separation], steered: Sequence[Steered], endings: Endings, cost: Cost
) -> list[Remark]:
    """Everything that is amiss, what makes a run pointless first."""
    found = [*_of_reading(separations), *_of_steering(steered), *_of_endings(endings), *_of_cost(cost)]
    return sorted(found, key=lambda remark: not remark.fatal)


def _of_reading(separations: Sequence[Separation]) -> Iterator[Remark]:
    for one in separations:
        under = f"{one.positive:.3f} under the persona against {one.negative:.3f} under the opposite one"
        if one.signal == TRAIT and not one.readable:
            yield Remark(
                f"the trait cannot be read: this model does not take on the persona ({under}; difference "
                f"{one.apart:+.3f} {one.unit}): choose another trait text or a larger model",
                fatal=True,
            )
        elif one.signal == TRAIT and one.apart.value < PERSONA_SIZES[1][0]:
            yield Remark(
                f"this model hardly takes on the persona ({under}): choose another trait text or a larger model"
            )
        elif not one.readable:
            why = f"{under}; difference {one.apart:+.3f} {one.unit}, as the trait means it" if one.valid else one.why
            yield Remark(f"{one.signal} does not read the trait ({why}): rest on the persona log-ratio alone")


def _of_steering(steered: Sequence[Steered]) -> Iterator[Remark]:
    own = steered[0]
    working = [one for one in steered if one.works]
    if not working:
        best = max(steered, key=lambda one: _order(one.shift.value))
        yield Remark(
            f"the trait cannot be steered: no place that was tried shifts it; the largest shift is "
            f"{best.shift:+.3f} nats/token ({best.place.words}): try methods=all, another trait text or a larger model",
            fatal=True,
        )
        return
    best = max(working, key=lambda one: (not one.incoherent, _order(one.per_nat.value)))
    if not own.works:
        yield Remark(f"the recipe's place does not shift the trait ({own.shift:+.3f} nats/token): {_gain(best)}")
    elif best is not own and best.more.low > 0 and best.per_nat.value >= MUCH_MORE * own.per_nat.value:
        times = best.per_nat.value / own.per_nat.value
        yield Remark(f"{_gain(best)}, {times:.1f} times as much as the recipe's ({own.per_nat.value:.3f})")
    if own.miss:
        yield Remark(
            f"the recipe's dose is out of reach: {own.miss}; lower calibration.target or take another steer.method"
        )
    if own.incoherent:
        yield Remark(
            f"at the recipe's dose the answers are not coherent ({'; '.join(own.incoherent)}): "
            "lower calibration.target or generation.alphas"
        )


def _gain(one: Steered) -> str:
    return f"{one.place.words} shifts it by {one.per_nat.value:.3f} per nat"


def _order(value: float) -> float:
    return float("-inf") if value != value else value


def _of_endings(endings: Endings) -> Iterator[Remark]:
    if endings.within >= FEW_END:
        return
    share = "no answer" if endings.within == 0 else f"{endings.within:.0%} of the answers"
    need = (
        f"generation.tokens={endings.p90} holds nine of ten"
        if endings.p90
        else f"nine of ten need more than {endings.looked}; raise generation.tokens, or take a model that is brief"
    )
    yield Remark(f"{share} ended within {endings.budget} tokens, so that the student hardly learns to stop: {need}")


def _of_cost(cost: Cost) -> Iterator[Remark]:
    plan = cost.memory
    if plan.need > plan.room:
        yield Remark(
            f"memory may run out while {plan.largest}: about {size(plan.need)} are needed and {size(plan.room)} are "
            "there; take a smaller model, model.load_4bit=true or compute.merge_history=false"
        )
