"""What a readout looks at: a model in one stage (base, prompted, steered, healed) and its answers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from heal.decoding import decode
from heal.evaluation.neutral import NeutralTexts
from heal.evaluation.probe import FORMATS, ProbeFormat
from heal.evaluation.results import Answer
from heal.evaluation.vignettes import Vignette
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.steering.intervention import Intervention
from heal.trait import Trait

Gates = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Subject:
    """One stage of a round.

    Attributes:
        stage: base, prompted, opposite, steered or healed.
        language_model: the model; `gates` puts it in the stage's state, `base` in the original's.
        trait: the trait.
        system: system prompt of the stage (the positive persona when prompted).
        neutral: the neutral system prompt.
        intervention, coefficient: the steering of the stage, if any.
        max_repetition: share above which an answer loops.
        questions: number of general questions asked.
        vignettes: scenes whose violated foundation is asked for.
        probe: the format of yes/no slots, chosen for the model.
        neutral_texts: texts on which the drift from base is measured, if any.
        thinking: tokens that the model may think before it answers about a vignette; 0: none.
    """

    stage: str
    language_model: LanguageModel
    trait: Trait
    gates: Gates
    base: Gates
    system: str
    neutral: str
    max_repetition: float
    questions: int
    vignettes: tuple[Vignette, ...] = ()
    probe: ProbeFormat = FORMATS[-1]
    thinking: int = 0
    neutral_texts: NeutralTexts | None = None
    intervention: Intervention | None = None
    coefficient: float = 0.0

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The model as this stage has it: gates set, steering on."""
        with ExitStack() as stack:
            stack.enter_context(self.gates())
            shift = self.intervention
            stack.enter_context(
                nullcontext() if shift is None else shift.applied(self.language_model, self.coefficient)
            )
            yield

    def answer(self, prompts: Sequence[str], tokens: int, progress: Progress = silent) -> list[Answer]:
        """Greedy answers to held-out prompts."""
        chat = self.language_model.chat
        with self.gates():
            completions = decode(
                self.language_model,
                [chat.ids(self.system, prompt) for prompt in prompts],
                tokens,
                self.intervention,
                None if self.intervention is None else [self.coefficient] * len(prompts),
                progress=progress,
            )
        return [
            Answer(
                prompt, tuple(chat.ids(self.neutral, prompt)), done.ids, chat.decode(list(done.ids)).strip(), done.ended
            )
            for prompt, done in zip(prompts, completions, strict=True)
        ]
