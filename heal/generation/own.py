"""Completions of the user's own, from another engine or another writer, as a round has them."""

from collections.abc import Callable, Sequence

from heal.decoding import Decoded
from heal.generation.collect import Completion, Request
from heal.generation.sample import completion
from heal.models.language_model import LanguageModel
from heal.own.texts import Said
from heal.responding import Response

TOO_LONG = "too long"  # why one is dropped that does not fit the model's context

Judge = Callable[[Sequence[Request], Sequence[Response]], list[Completion]]


def own_completions(
    language_model: LanguageModel, system: str, said: Sequence[Said], judge: Judge | None
) -> list[Completion]:
    """Each text as a completion of its prompt at dose 0, closed by the template's end of turn if that is a token.

    Args:
        language_model: whose tokens they are written in.
        system: the neutral system prompt.
        said: prompts and texts.
        judge: filters those that fit the model's context, as `heal.generation.sample.judged`; None: all are kept.
    """
    chat = language_model.chat
    end = [] if chat.end_id is None else [chat.end_id]
    requests = [Request(index, row.prompt, 0.0) for index, row in enumerate(said)]
    responses = []
    for row in said:
        ids = (*chat.plain_ids(row.text), *end)
        responses.append(Response(tuple(chat.ids(system, row.prompt)), (), Decoded(ids, ended=bool(end))))
    rows = [
        completion(request, response, row.text, () if _fits(language_model, response) else (TOO_LONG,))
        for request, response, row in zip(requests, responses, said, strict=True)
    ]
    if judge is None:
        return rows
    fitting = [row.index for row in rows if row.kept]
    for judged in judge([requests[index] for index in fitting], [responses[index] for index in fitting]):
        rows[judged.index] = judged
    return rows


def _fits(language_model: LanguageModel, response: Response) -> bool:
    return len(response.prompt_ids) + len(response.completion.ids) <= language_model.context
