"""Texts from the rows of a dataset: prompts and chats, contrast pairs, neutral texts, completions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from heal.errors import UserError
from heal.own.source import Table, read_table
from heal.turns import ROLES, prompt_of, turns_of

PROMPT = ("prompt", "question", "instruction", "messages", "conversations", "text")
ANSWER = ("completion", "response", "answer", "output", "text")
CHAT = ("messages", "conversations")
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant"}
_SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class Contrast:
    """A pair of texts that differ in the trait.

    Attributes:
        prompt: what both answer; empty: both are user messages.
        positive, negative: with more and with less of the trait.
    """

    prompt: str
    positive: str
    negative: str


@dataclass(frozen=True)
class Said:
    """A prompt, and what was said to it."""

    prompt: str
    text: str


def prompts_from(key: str, spec: str) -> tuple[str, ...]:
    """The prompts of a dataset, each once: texts, or chats up to the last user message; system messages left out.

    Raises:
        UserError: see `read_table` and `Source.column`; a row is neither, or empty.
    """
    table = read_table(key, spec)
    name = table.source.column(table.columns, PROMPT)
    return tuple(dict.fromkeys(_prompt(table, number, name, row[name]) for number, row in _numbered(table)))


def contrasts_from(key: str, spec: str) -> tuple[Contrast, ...]:
    """Contrast pairs: columns positive and negative (or chosen and rejected), and a prompt that both answer, if any.

    Chats whose last turn is an answer, as preference data has them, bring their prompt with them.

    Raises:
        UserError: see `read_table` and `Source.column`; a row is no pair, or its texts are equal.
    """
    table = read_table(key, spec)
    source, columns = table.source, table.columns
    more, less = (
        source.column(columns, usual, place)
        for place, usual in enumerate((("positive", "chosen"), ("negative", "rejected")))
    )
    given = source.columns[2] if len(source.columns) > 2 else "prompt"
    asked = source.column(columns, (given,), 2) if given in columns or len(source.columns) > 2 else None
    pairs = []
    for number, row in _numbered(table):
        one, other = (_said(table, number, name, row[name]) for name in (more, less))
        prompt = one.prompt
        if asked is not None and not prompt:
            prompt = _prompt(table, number, asked, row[asked])
        if one.prompt != other.prompt or one.text == other.text:
            raise _wrong(table, number, less, "not a contrast: the two answer different prompts, or are equal")
        pairs.append(Contrast(prompt, one.text, other.text))
    return tuple(pairs)


def said_from(key: str, spec: str) -> tuple[Said, ...]:
    """Prompts with what was said to each: a column of each, or chats whose last turn is the assistant's.

    Raises:
        UserError: see `read_table` and `Source.column`; a row is neither, or empty.
    """
    table = read_table(key, spec)
    source, columns = table.source, table.columns
    chats = [name for name in source.columns or CHAT if name in columns]
    if len(source.columns) < 2 and len(chats) == 1:
        rows = [_said(table, number, chats[0], row[chats[0]]) for number, row in _numbered(table)]
        if bare := next((number for number, row in enumerate(rows, 1) if not row.prompt), 0):
            raise _wrong(table, bare, chats[0], "a chat that ends with an answer is required")
        return tuple(rows)
    if len(columns) < 2:
        raise UserError(
            f"{source.said}: it has one column ({columns[0]}), and two are required, as prompt and completion, or chats"
        )
    asked = source.column(columns, PROMPT)
    answer = source.column([name for name in columns if name != asked], ANSWER, 1)
    return tuple(
        Said(_prompt(table, number, asked, row[asked]), _said(table, number, answer, row[answer]).text)
        for number, row in _numbered(table)
    )


def _numbered(table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    return enumerate(table.rows, start=1)


def _wrong(table: Table, number: int, column: str, what: str) -> UserError:
    return UserError(f"{table.source.said}: row {number} of column '{column}': {what}")


def _prompt(table: Table, number: int, column: str, value: Any) -> str:
    """A cell as a prompt."""
    if isinstance(value, str) and value.strip():
        try:
            turns_of(value.strip())
        except ValueError as error:
            raise _wrong(table, number, column, str(error)) from error
        return value.strip()
    turns = _turns(table, number, column, value)
    return _joined(table, number, column, turns[:-1] if len(turns) % 2 == 0 else turns)


def _said(table: Table, number: int, column: str, value: Any) -> Said:
    """A cell as something said: a text, or the answer that a chat ends with and the prompt before it."""
    if isinstance(value, str) and value.strip():
        return Said("", value.strip())
    turns = _turns(table, number, column, value)
    if len(turns) % 2:
        raise _wrong(table, number, column, "a chat that ends with an answer is required")
    return Said(_joined(table, number, column, turns[:-1]), turns[-1])


def _joined(table: Table, number: int, column: str, turns: list[str]) -> str:
    try:
        return prompt_of(turns)
    except ValueError as error:
        raise _wrong(table, number, column, str(error)) from error


def _turns(table: Table, number: int, column: str, value: Any) -> list[str]:
    """What was said in turn in a chat, the user first; without its system message."""
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        empty = value is None or not str(value).strip() or value == []
        raise _wrong(table, number, column, "empty" if empty else f"a text or a chat is required, not {value!r:.40}")
    said: list[str] = []
    for turn in value:
        role = str(turn.get("role", turn.get("from")))
        text = turn.get("content", turn.get("value"))
        if isinstance(text, list):  # parts, as vision-language models have them
            text = "".join(part.get("text") or "" for part in text)
        if role in _SYSTEM:
            continue
        if _ROLES.get(role, role) != ROLES[len(said) % 2] or not isinstance(text, str) or not text.strip():
            raise _wrong(
                table, number, column, f"turn {len(said) + 1}: a text of the {ROLES[len(said) % 2]} is required"
            )
        said.append(text.strip())
    if not said:
        raise _wrong(table, number, column, "empty")
    return said
