"""Measures one stage: answers to the held-out prompts, and every readout."""

from collections.abc import Sequence

from heal import choices
from heal.evaluation.asking.way import ForcedChoice
from heal.evaluation.results import Answer, StageResult
from heal.evaluation.signal import OF, READOUTS, Measured
from heal.evaluation.subject import Setup, Subject
from heal.progress import Progress, silent


def evaluate(subject: Subject, progress: Progress = silent) -> StageResult:
    """Answers the held-out prompts greedily and measures every readout.

    Args:
        subject: the stage.
        progress: told (answers finished, answers).
    """
    answers = subject.answer(progress)
    return StageResult(subject.stage, tuple(answers), tuple(measure_all(subject, answers)))


def measure_all(subject: Subject, answers: Sequence[Answer]) -> list[Measured]:
    """The signals of every readout."""
    measured: list[Measured] = []
    for name in choices.names(READOUTS):
        values = choices.load(READOUTS, name, "measure")(subject, answers)
        described = {signal.name for signal in choices.load(READOUTS, name, "SIGNALS")}
        assert {value.name.partition(OF)[0] for value in values} <= described, (
            f"{name}: measures other than it describes"
        )
        measured += values
    return measured


def forced_choices(setup: Setup) -> list[ForcedChoice]:
    """The forced choices that the readouts of a run rest on: those of readouts that have a `choice`."""
    made = [of_readout(setup) for of_readout in choices.load_all(READOUTS, "choice", optional=True).values()]
    return [choice for choice in made if choice.asked]
