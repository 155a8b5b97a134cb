"""Measures one stage: answers to the held-out prompts, and every readout."""

from collections.abc import Sequence

from heal.evaluation.readouts import measure_all
from heal.evaluation.results import StageResult
from heal.evaluation.subject import Subject
from heal.progress import Progress, silent


def evaluate(subject: Subject, prompts: Sequence[str], tokens: int, progress: Progress = silent) -> StageResult:
    """Answers the held-out prompts greedily and measures every readout.

    Args:
        subject: the stage.
        prompts: held-out prompts, the same at every stage.
        tokens: token budget of an answer.
        progress: told (answers finished, answers).
    """
    answers = subject.answer(prompts, tokens, progress)
    return StageResult(subject.stage, tuple(answers), tuple(measure_all(subject, answers)))
