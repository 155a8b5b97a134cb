"""The `key=value` words of a command, read by a dataclass of `heal.config.key` fields; errors name the nearest."""

import math
import tempfile
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from heal.errors import UserError, nearest
from heal.keys import Key, key_lines, keys

Schema = TypeVar("Schema")


def read_options(schema: type[Schema], words: Sequence[str]) -> Schema:
    """An instance of `schema` from `key=value` words; a text is taken as it stands, whatever is in it.

    Args:
        schema: a dataclass of `key` fields: str (of choices or free), int, float, Literal of texts, or one of them
            | None. A `str` whose default is empty must be given.
        words: the command line.

    Raises:
        UserError: no key=value, an unknown key, a value of a wrong type or out of range, or one missing.
    """
    known = {item.name: item for item in keys(schema)}
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise UserError(f"'{word}': expected key=value; --help lists the keys")
        if name not in known:
            raise UserError(f"unknown key '{name}'{nearest(name, list(known))}")
        values[name] = _convert(known[name], text)
    for name, item in known.items():
        if item.type is str and item.default == "" and not values.get(name):
            raise UserError(f"{name}=... is needed: {item.help}")
    return schema(**values)


def split_words(schema: type, words: Sequence[str], short: Iterable[str] = ()) -> tuple[list[str], list[str]]:
    """The words that set a command's own keys, and those for the recipe.

    Args:
        schema: the command's dataclass.
        words: the command line.
        short: the command's names for keys of the recipe.

    Raises:
        UserError: a key of neither; names the nearest among all of them.
    """
    own = [item.name for item in keys(schema)]
    known = [*own, *short, *(item.name for item in keys())]
    for word in words:
        name, equals, _ = word.partition("=")
        if name and equals and name not in known:
            raise UserError(f"unknown key '{name}'{nearest(name, known)}")
    mine = [word for word in words if word.partition("=")[0] in own]
    return mine, [word for word in words if word not in mine]


def options_help(schema: type, usage: str, purpose: str) -> str:
    """`--help` of a command, from its dataclass."""
    lines = [f"usage: {usage}", "", purpose, "", "keys (type, default, meaning):"]
    for item in keys(schema):
        lines += key_lines(item, "" if item.default in ("", None) else str(item.default))
    return "\n".join(lines)


def round_index(number: int, finished: Sequence[int]) -> int:
    """The index, as in rounds/NN, of the round that `round=number` names: people count rounds from 1.

    Args:
        number: as it was typed.
        finished: the indices of the run's finished rounds, from 0 without a gap.

    Raises:
        UserError: it is below 1, or that round is not finished.
    """
    if number < 1:
        raise UserError(f"round={number}: rounds are counted from 1; the first is round=1")
    if number > len(finished):
        there = f"the last finished round is round={len(finished)}" if finished else "no round is finished yet"
        raise UserError(f"round={number}: {there}")
    return finished[number - 1]


def output_path(text: str, folder: bool, key: str = "out") -> Path:
    """The place that `key=text` names, looked at before anything is computed for it; nothing is made there.

    Args:
        text: as it was given.
        folder: whether it is a folder that will be written, or a file.
        key: what names it.

    Raises:
        UserError: it is empty, the other of the two, or nothing can be written there.
    """
    if not text.strip() or not text.isprintable():
        raise UserError(f"{key}={text}: expected the path of a {'folder' if folder else 'file'}")
    path = Path(text).expanduser()
    if not folder and path.is_dir():
        raise UserError(f"{key}={text}: that is a folder; name the file to write")
    place = path if folder else path.parent
    try:
        while not place.exists():
            place = place.parent
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(f"{key}={text}: nothing can be written to {place} ({error.strerror})") from error
    return path


def resolve_device(name: str):
    """The torch device of `device=name`; `auto` is the accelerator if there is one, else the CPU.

    Raises:
        UserError: no such device here.
    """
    import torch

    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name}: not a device of this computer; use device=auto or device=cpu") from error
    return device


def _convert(item: Key, text: str) -> Any:
    """`text` as the type of `item`; for numbers that may be None, empty, null or none means it."""
    kind, optional = item.type, False
    if type(None) in typing.get_args(kind):
        optional = True
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if optional and kind is not str and text.lower() in ("", "null", "none"):
        return None
    if item.names:
        if text not in item.names:
            raise UserError(f"{item.name}={text}: not one of its values{nearest(text, list(item.names))}")
        return text
    if kind is str:
        return text
    try:
        value = kind(text)
    except ValueError as error:
        raise UserError(f"{item.name}={text}: expected {kind.__name__}") from error
    low, high = item.minimum, item.maximum
    if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
        bounds = [f"{sign} {bound:g}" for sign, bound in ((">=", low), ("<=", high)) if bound is not None]
        raise UserError(f"{item.name}={text}: out of range, must be {' and '.join(bounds) or 'a finite number'}")
    return value
