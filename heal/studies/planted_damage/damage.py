"""Planted damage: answers and weights spoilt on purpose, to see which coherence signals notice what.

Kinds of damage to an answer spoil its end and leave its beginning as it was; those to answers as a whole leave each of
them fluent, but under the wrong prompt. `size` is the spoilt fraction (of an answer, or of the answers), in [0, 1],
rounded to whole tokens, words or answers and at least one where it is above 0; randomness depends on the seed and on
nothing else.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from heal.errors import UserError
from heal.evaluation.results import Answer
from heal.models.language_model import LanguageModel
from heal.randomness import derive_seed, generator, shuffled
from heal.records import read_jsonl

LANGUAGES = Path(__file__).resolve().parents[2] / "data" / "languages.jsonl"

Kind = Literal["token loop", "long loop", "word salad", "wrong language", "cut off", "exchanged", "one answer"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_SHORT, _LONG = 3, 12  # tokens of a loop's piece


def token_loop(ids: Sequence[int], size: float) -> tuple[int, ...]:
    """The last fraction `size` of the tokens is a loop of the 3 tokens before it; the length stays.

    The piece is half of an answer shorter than 6 tokens. It is said once before it is repeated: where
    less than the piece is left of the beginning, the loop starts after the answer's first 3 tokens.

    Args:
        ids: token ids of an answer.
        size: the spoilt fraction.

    Raises:
        ValueError: `size` is not in [0, 1].
    """
    return _loop(ids, size, min(_SHORT, len(ids) // 2))


def long_loop(ids: Sequence[int], size: float) -> tuple[int, ...]:
    """As `token_loop`, but the piece is 12 tokens long, or a third of an answer shorter than 36."""
    return _loop(ids, size, min(_LONG, len(ids) // 3))


def word_salad(text: str, size: float, seed: int) -> str:
    """The last fraction `size` of the words, shuffled; the white space between words stays where it is.

    The words come in another order than before wherever two of them differ.

    Raises:
        ValueError: `size` is not in [0, 1].
    """
    parts, start = _split(text, size)
    words = parts[start::2]
    if len(set(words)) > 1:
        orders = (shuffled(words, "word salad", seed, attempt) for attempt in count())
        parts[start::2] = next(order for order in orders if order != words)
    return "".join(parts)


def wrong_language(text: str, size: float, other_text: str) -> str:
    """The last fraction `size` of the words, replaced by as many words of `other_text` from its beginning.

    Raises:
        ValueError: `size` is not in [0, 1], or `other_text` has too few words.
    """
    parts, start = _split(text, size)
    needed, others = len(parts[start::2]), other_text.split()
    if len(others) < needed:
        raise ValueError(f"wrong_language: {needed} words are replaced, and other_text has only {len(others)}")
    parts[start::2] = others[:needed]
    return "".join(parts)


def cut_off(ids: Sequence[int], size: float) -> tuple[int, ...]:
    """The tokens without the last fraction `size` of them; one token always stays.

    Raises:
        ValueError: `size` is not in [0, 1].
    """
    return tuple(ids[: max(1, len(ids) - _spoilt_of(len(ids), size))])


def exchanged(answers: Sequence[Answer], size: float, seed: int) -> list[Answer]:
    """A fraction `size` of the answers, at least two, each under the prompt of another one of them.

    Raises:
        ValueError: `size` is not in [0, 1].
    """
    count = _spoilt_of(len(answers), size)
    chosen = shuffled(list(range(len(answers))), "exchanged", seed)[: max(2, count) if count else 0]
    return _answered_by(answers, dict(zip(chosen, [*chosen[1:], *chosen[:1]], strict=True)))


def one_answer(answers: Sequence[Answer], size: float, seed: int) -> list[Answer]:
    """A fraction `size` of the prompts, at most all but one, answered by what was said to that one.

    Raises:
        ValueError: `size` is not in [0, 1].
    """
    same, *others = shuffled(list(range(len(answers))), "one answer", seed)
    return _answered_by(answers, dict.fromkeys(others[: _spoilt_of(len(answers), size)], same))


def damaged(
    language_model: LanguageModel, answers: Sequence[Answer], kind: Kind, size: float, seed: int
) -> list[Answer]:
    """The answers with one kind of damage; those with nothing to damage, and all at size 0, as they were.

    Loops and cuts work on token ids and leave an answer that did not end: its end-of-turn token is gone
    and `ended` is False. Salad and a wrong language work on words; the text is tokenised anew, and the
    end-of-turn token and `ended` stay. `text` is what the ids decode to, white space at its ends removed.

    Args:
        language_model: for its tokenizer and its end-of-turn tokens.
        answers: what was said.
        kind: of damage.
        size: the spoilt fraction of each answer's tokens or words, or of the answers.
        seed: of the salad's order, of which language and which texts of it are used, and of which answers are moved.

    Raises:
        ValueError: `size` is not in [0, 1].
    """
    if kind == "exchanged":
        return exchanged(answers, size, seed)
    if kind == "one answer":
        return one_answer(answers, size, seed)
    return [
        _damaged(language_model, answer, kind, size, derive_seed(seed, index)) for index, answer in enumerate(answers)
    ]


@contextmanager
def noisy_weights(language_model: LanguageModel, size: float, seed: int) -> Iterator[None]:
    """Adds noise to the linear layers of the decoder's blocks inside the context; then the same bits are back.

    Each weight matrix gets Gaussian noise whose standard deviation is `size` times that of the matrix's
    own entries, drawn and added in float32. Embeddings, norms, biases and LoRA adapters stay as they
    are. A layer's noise depends on the seed and the layer's name, with or without adapters on it.

    The noise is in the weights in force on entering. Enter and answer in one and the same stage, and score
    under the base outside: inside, base and student share noisy matrices, except where an accumulator
    keeps merged ones beside the base's and other gates bring the clean ones back. For inference.

    Args:
        language_model: the model as it stands.
        size: fraction of a matrix's standard deviation; 0 changes nothing.
        seed: of the noise.

    Raises:
        ValueError: `size` is negative.
        UserError: the weights are quantised.
    """
    if not size >= 0:
        raise ValueError(f"noisy_weights: size {size} is negative")
    weights = _matrices(language_model) if size else {}
    before = {name: weight_OI.clone() for name, weight_OI in weights.items()}
    try:
        for name, weight_OI in weights.items():
            weight_OI.copy_(_noisy(weight_OI, size, seed, name))
        yield
    finally:
        for name, weight_OI in weights.items():
            weight_OI.copy_(before[name])


def _spoilt_of(total: int, size: float) -> int:
    """How many of `total` the fraction `size` is."""
    if not 0 <= size <= 1:
        raise ValueError(f"damage of size {size}: a fraction in [0, 1] is required")
    return min(total, max(1, int(size * total + 0.5))) if size else 0


def _answered_by(answers: Sequence[Answer], source: Mapping[int, int]) -> list[Answer]:
    """The answers, those at the keys of `source` with what was said at its values, under their own prompts."""
    said = [answers[source.get(index, index)] for index in range(len(answers))]
    return [
        replace(answer, ids=other.ids, text=other.text, ended=other.ended)
        for answer, other in zip(answers, said, strict=True)
    ]


def _loop(ids: Sequence[int], size: float, period: int) -> tuple[int, ...]:
    spoilt = _spoilt_of(len(ids), size)
    period = max(1, period)
    start = max(period, len(ids) - spoilt)
    piece = ids[start - period : start]
    return (*ids[:start], *(piece[index % period] for index in range(len(ids) - start)))


def _split(text: str, size: float) -> tuple[list[str], int]:
    """White space and words in turn, white space first and last, and where the first spoilt word stands."""
    parts = re.split(r"(\S+)", text)
    words = len(parts) // 2
    return parts, 2 * (words - _spoilt_of(words, size)) + 1


def _damaged(language_model: LanguageModel, answer: Answer, kind: str, size: float, seed: int) -> Answer:
    chat = language_model.chat
    ends = bool(answer.ids) and answer.ids[-1] in language_model.end_ids
    body, end = (answer.ids[:-1], answer.ids[-1:]) if ends else (answer.ids, ())
    words = len(answer.text.split())
    if kind == "word salad" or kind == "wrong language":
        if not _spoilt_of(words, size):
            return answer
        if kind == "word salad":
            text = word_salad(answer.text, size, seed)
        else:
            text = wrong_language(answer.text, size, _foreign_text(words, seed))
        ids, ended = (*chat.plain_ids(text), *end), answer.ended
    else:
        if not _spoilt_of(len(body), size):
            return answer
        spoil = {"token loop": token_loop, "long loop": long_loop, "cut off": cut_off}[kind]
        ids, ended = spoil(body, size), False
    return replace(answer, ids=ids, text=chat.decode(list(ids)).strip(), ended=ended)


def _foreign_text(words: int, seed: int) -> str:
    """At least `words` words in one language: its texts in an order of their own, over again once all are used."""
    texts: dict[str, list[str]] = defaultdict(list)
    for content in read_jsonl(LANGUAGES):
        texts[content["language"]].append(content["text"])
    language = shuffled(sorted(texts), "language", seed)[0]
    said: list[str] = []
    for text in cycle(shuffled(texts[language], "texts", seed)):
        said += text.split()
        if len(said) >= words:
            break
    return " ".join(said)


def _matrices(language_model: LanguageModel) -> dict[str, Tensor]:
    """The weights `[O, I]` in force of the blocks' linear layers, each once, by the layer's name without adapters."""
    matrices: dict[str, Tensor] = {}
    for name, module in language_model.blocks.named_modules():
        parts = [part for part in name.split(".") if part != "base_layer"]
        if not isinstance(module, nn.Linear) or any(part.startswith("lora_") for part in parts):
            continue
        if not module.weight.is_floating_point():
            raise UserError(f"noise on {name}: its weights are quantised; load the model with model.load_4bit=false")
        if all(module.weight.data_ptr() != weight_OI.data_ptr() for weight_OI in matrices.values()):
            matrices[".".join(parts)] = module.weight.data
    return matrices


def _noisy(weight_OI: Tensor, size: float, seed: int, name: str) -> Tensor:
    """The weights `[O, I]` in float32 with their noise added."""
    noise_OI = torch.randn(weight_OI.shape, generator=generator("noisy weights", seed, name)).to(weight_OI.device)
    exact_OI = weight_OI.float()
    return exact_OI + size * exact_OI.std(correction=0) * noise_OI
