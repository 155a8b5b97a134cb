"""The best round of a run, read from its folder; and the round that a command means. docs/method.md, The best round."""

from collections.abc import Sequence
from dataclasses import dataclass

from heal.errors import UserError
from heal.evaluation.choice import Choice, best_round
from heal.evaluation.metrics import RoundMetrics
from heal.evaluation.results import StageResult
from heal.evaluation.signal import TRAIT
from heal.options import round_index
from heal.run.folder import RunFolder


@dataclass(frozen=True)
class Best:
    """Which of a run's rounds to use, and in words what that rests on.

    Attributes:
        choice: its indices are those of `rounds`.
        rounds: the metrics of the rounds that it was made among.
    """

    choice: Choice
    rounds: tuple[RoundMetrics, ...]

    @property
    def metrics(self) -> RoundMetrics:
        """Those of the best round."""
        return self.rounds[self.choice.index]

    @property
    def holding(self) -> int:
        """How many rounds hold."""
        return sum(metrics.verdict.holds for metrics in self.rounds)

    @property
    def why(self) -> str:
        """What makes it the best."""
        holding, rounds = self.holding, len(self.rounds)
        if holding > 1:
            among = (
                f"{rounds} rounds, which all hold" if holding == rounds else f"{holding} of {rounds} rounds that hold"
            )
            return f"the most of the trait among the {among}"
        return "it holds" if rounds == 1 else f"the only one of {rounds} rounds that holds"

    @property
    def how(self) -> str:
        """How its figure came about; empty where there was nothing to choose."""
        if self.holding == 1:
            return ""
        numbers = sorted({self.rounds[index].round for index in self.choice.halves})
        chose = f", which choose {'rounds' if len(numbers) > 1 else 'round'} {' and '.join(map(str, numbers))}"
        return f"chosen and measured on different halves of the prompts{'' if self.choice.agreed else chose}"

    @property
    def said(self) -> str:
        """In one line: the figure, how it came about, and why."""
        how = f" ({self.how})" if self.how else ""
        return f"trait {self.choice.shift:+.3f} nats/token over base{how}; {self.why}"


def read_best(folder: RunFolder, rounds: Sequence[int]) -> Best | None:
    """The best of a run's finished `rounds` (counted from 0); None where none holds.

    Raises:
        UserError: a file of the run is missing, or not what heal writes.
    """
    metrics = tuple(RoundMetrics.load(folder.round(index)) for index in rounds)
    if not any(one.verdict.holds for one in metrics):
        return None
    from heal.randomness import derive_seed

    recipe = folder.recipe()
    base, prompted = (StageResult.load(folder.baseline, stage) for stage in ("base", "prompted"))
    healed = [StageResult.load(folder.round(index), "healed") for index in rounds]
    choice = best_round(
        [one.verdict.label for one in metrics],
        [stage.signal(TRAIT).values for stage in healed],
        base.signal(TRAIT).values,
        prompted.signal(TRAIT).values,
        recipe.evaluation.resamples,
        derive_seed(recipe.run.seed, "bootstrap"),
    )
    return None if choice is None else Best(choice, metrics)


def meant_round(folder: RunFolder, text: str | None) -> tuple[int | None, str]:
    """The index of the round that `round=text` means, and why in a few words; None where no round is finished.

    Args:
        folder: of the run.
        text: a number from 1, best or last; None: what the recipe's `export.round` says, or the last one where no
            round holds.

    Raises:
        UserError: none of these, that round is not finished, a file is damaged, or best where none holds.
    """
    asked = folder.recipe().export.round if text is None else text
    if asked.isdecimal() and len(asked) < 10:
        index = round_index(int(asked), folder.readable(int(asked) - 1))
        return index, f"round {index + 1}"
    if asked not in ("best", "last"):
        raise UserError(f"round={asked}: expected a number from 1, best or last")
    rounds = folder.readable()
    if not rounds:
        return None, ""
    last = f"round {len(rounds)} of {len(rounds)}, the last one"
    if asked == "last":
        return rounds[-1], last
    best = read_best(folder, rounds)
    if best is not None:
        return rounds[best.choice.index], f"round {best.metrics.round}, the best one: {best.why}"
    if text is None:
        return rounds[-1], f"{last}: none holds"
    raise UserError(f"round=best: no round of {folder.path} holds, so none is the best; round=last takes the last one")
