"""What a model says to a prompt, after a thought where it is to think first (docs/method.md, Thinking).

The thought becomes part of the prompt that the answer continues, so that whoever reads, scores or trains an answer is
given the thought as context and the answer's tokens as the completion.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heal.decoding import GREEDY, Decoded, Sampling, Until, decode
from heal.models.chat import Turn
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.steering.intervention import Intervention

# Called with whether it is a thought, and the ids of what a row has said so far. What it raises ends the decoding.
Heard = Callable[[bool, Sequence[int]], None]


@dataclass(frozen=True)
class Response:
    """A completion, and what it continues.

    Attributes:
        prompt_ids: the rendered prompt, with the thought if there is one.
        thought: ids of the thought, what closes it included; none where the model was not to think.
        completion: the answer; without tokens where the thought was not closed within its budget.
        unclosed: whether it was not.
    """

    prompt_ids: tuple[int, ...]
    thought: tuple[int, ...]
    completion: Decoded
    unclosed: bool = False


def respond(
    language_model: LanguageModel,
    chats: Sequence[tuple[str, str]],
    tokens: int,
    intervention: Intervention | None = None,
    coefficients: Sequence[float] | None = None,
    *,
    sampling: Sampling = GREEDY,
    seeds: Sequence[tuple[int | str, ...]] | None = None,
    loop_share: float | None = None,
    earlier: Sequence[Turn] = (),
    heard: Heard | None = None,
    progress: Progress = silent,
) -> list[Response]:
    """Answers each prompt in at most `tokens` tokens, after a thought of at most `language_model.thinking` tokens.

    Args:
        language_model: the model as it stands.
        chats: system prompt and user message of each row.
        tokens: token budget of an answer; a thought has its own.
        intervention: what shifts the model, in the thought as in the answer.
        coefficients: its coefficient for each row.
        sampling: how tokens are drawn.
        seeds: what each row's randomness is derived from; required unless greedy.
        loop_share: a row stops once a loop makes up this fraction of its token budget; None: never.
        earlier: what was said in the chat before each prompt.
        heard: told what a row has said after each of its tokens; on a GPU, of several tokens at once.
        progress: called with (rows finished, rows), a row's thought and its answer counted separately.
    """
    chat, budget = language_model.chat, language_model.thinking
    stages = 2 if budget else 1

    def say(prompts: dict[int, list[int]], tokens: int, part: int, until: Until | None = None) -> dict[int, Decoded]:
        """What is said to the prompts of some rows, by row; part 0 of the progress: thoughts."""
        said = decode(
            language_model,
            list(prompts.values()),
            tokens,
            intervention,
            None if coefficients is None else [coefficients[row] for row in prompts],
            sampling=sampling,
            seeds=None if seeds is None else [(*seeds[row], *(["thought"] if until else [])) for row in prompts],
            loop_share=loop_share,
            until=until if heard is None else _listening(heard, until),
            progress=lambda done, _: progress(part * len(chats) + done, stages * len(chats)),
        )
        return dict(zip(prompts, said, strict=True))

    if not budget:
        plain = {row: chat.ids(*rendered, earlier=earlier) for row, rendered in enumerate(chats)}
        return [Response(tuple(plain[row]), (), one) for row, one in say(plain, tokens, 0).items()]
    opened = {row: chat.open_ids(*rendered, earlier) for row, rendered in enumerate(chats)}
    thoughts = say(opened, budget, 0, chat.closed)
    prompts = {row: chat.ids(*chats[row], thought=thought.ids, earlier=earlier) for row, thought in thoughts.items()}
    answers = say({row: prompts[row] for row in prompts if thoughts[row].stopped}, tokens, 1)
    none = {row: Decoded((), ended=False, finite=thought.finite) for row, thought in thoughts.items()}
    return [
        Response(tuple(prompts[row]), thoughts[row].ids, completion, unclosed=not thoughts[row].stopped)
        for row, completion in (none | answers).items()
    ]


def _listening(heard: Heard, until: Until | None) -> Until:
    """`until`, which only a thought has, with `heard` told first."""

    def told(ids: Sequence[int]) -> bool:
        heard(until is not None, ids)
        return until is not None and until(ids)

    return told
