"""What a readout looks at: a model in one stage (base, prompted, steered, healed)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from heal.decoding import Decoded, decode
from heal.evaluation.asking.way import Asking, ForcedChoice
from heal.evaluation.judging.judge import Judge
from heal.evaluation.neutral import NeutralTexts
from heal.evaluation.probe import FORMATS, ProbeFormat
from heal.evaluation.results import Answer
from heal.evaluation.vignettes import Vignette
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.responding import respond
from heal.steering.intervention import Intervention
from heal.trait import Trait

Gates = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is the same at every stage: the model, and everything that it is asked.

    Attributes:
        language_model: the model.
        trait: the trait.
        base: context in which the model is the original one.
        system: the neutral system prompt.
        prompts: held-out prompts to answer.
        tokens: token budget of an answer.
        max_repetition: fraction above which an answer loops.
        questions: number of general questions asked.
        vignettes: scenes whose violated foundation is asked for.
        thinking: tokens that the model may think before it answers about a vignette; 0: none.
        probe: the format of the yes/no slot that interrupts an answer, chosen for the model.
        asking: the way of asking each forced choice that was chosen for the model, by the choice's name; one that is
            absent is asked as it was before there were several ways.
        neutral_texts: texts on which the drift from base is measured, if any.
        judge: an LLM that scores the answers, if any.
    """

    language_model: LanguageModel
    trait: Trait
    base: Gates
    system: str
    prompts: Sequence[str]
    tokens: int
    max_repetition: float
    questions: int
    vignettes: tuple[Vignette, ...] = ()
    thinking: int = 0
    probe: ProbeFormat = FORMATS[-1]
    neutral_texts: NeutralTexts | None = None
    judge: Judge | None = None
    asking: Mapping[str, Asking] = field(default_factory=dict)

    def way_of(self, choice: ForcedChoice) -> str:
        """The name of the way in which a forced choice is asked."""
        return self.asking[choice.name].way if choice.name in self.asking else choice.before


@dataclass(frozen=True)
class Subject:
    """One stage: the model with these gates, this system prompt and this steering.

    Attributes:
        setup: what is the same at every stage.
        stage: its name (base, prompted, opposite, steered, healed ...).
        gates: context in which the model is in the stage's state.
        persona: system prompt in place of the neutral one; None: the neutral one.
        intervention: the steering of the stage, if any.
        coefficient: of the steering.
    """

    setup: Setup
    stage: str
    gates: Gates
    persona: str | None = None
    intervention: Intervention | None = None
    coefficient: float = 0.0

    @property
    def system(self) -> str:
        """The stage's system prompt."""
        return self.setup.system if self.persona is None else self.persona

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The model as this stage has it: gates set, steering on."""
        with ExitStack() as stack:
            stack.enter_context(self.gates())
            if self.intervention is not None:
                stack.enter_context(self.intervention.applied(self.setup.language_model, self.coefficient))
            yield

    def decode(self, prompts: Sequence[str], tokens: int) -> list[Decoded]:
        """What the model says to each prompt, greedily, at once, in at most so many tokens."""
        model = self.setup.language_model
        with self.gates():
            return decode(
                model,
                [model.chat.ids(self.system, prompt) for prompt in prompts],
                tokens,
                self.intervention,
                None if self.intervention is None else [self.coefficient] * len(prompts),
            )

    def answer(self, progress: Progress = silent) -> list[Answer]:
        """Greedy answers to the held-out prompts, after a thought where the model is to think."""
        model, prompts = self.setup.language_model, self.setup.prompts
        with self.gates():
            said = respond(
                model,
                [(self.system, prompt) for prompt in prompts],
                self.setup.tokens,
                self.intervention,
                None if self.intervention is None else [self.coefficient] * len(prompts),
                progress=progress,
            )
        return [
            Answer(
                prompt,
                tuple(model.chat.ids(self.setup.system, prompt, thought=response.thought)),
                response.completion.ids,
                model.chat.decode(list(response.completion.ids)).strip(),
                response.completion.ended,
                response.thought,
                response.unclosed,
            )
            for prompt, response in zip(prompts, said, strict=True)
        ]
