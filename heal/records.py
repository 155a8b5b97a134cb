"""Typed records on disk: dataclasses to JSON and back, every file read and written in one way."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from heal.errors import UserError

Record = TypeVar("Record")
SEAL = "sha256"  # of the rest of a sealed record, beside its fields


_UNREADABLE = (OSError, ValueError, RecursionError)  # a folder, not UTF-8, not JSON, nested without an end


def json_bytes(content: Any) -> bytes:
    """A JSON file of plain values; NaN and infinities stand as JavaScript writes them."""
    return (json.dumps(content, indent=1) + "\n").encode()


def jsonl_bytes(rows: Iterable[Any]) -> bytes:
    """A JSON-lines file of plain values."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def record_bytes(record: Any) -> bytes:
    """A dataclass as a JSON file."""
    return json_bytes(asdict(record))


def records_bytes(records: Iterable[Any]) -> bytes:
    """Dataclasses as a JSON-lines file."""
    return jsonl_bytes(asdict(record) for record in records)


def digest(content: Any) -> str:
    """The SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sealed_bytes(record: Any) -> bytes:
    """A dataclass as a JSON file that says when it is no longer what was written; see `read_sealed`."""
    content = json.loads(record_bytes(record))
    return json_bytes(content | {SEAL: digest(content)})


def read_json(path: Path, remedy: str = "delete it to do that step again") -> Any:
    """UserError when there is no such file, or it is not whole JSON; `remedy` says what to do then."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except _UNREADABLE as error:
        raise UserError(f"{path}: truncated or not JSON ({error}); {remedy}") from error


def read_jsonl(path: Path) -> list[Any]:
    """UserError when there is no such file, or a line of it is not JSON."""
    try:
        return [json.loads(line) for line in text_lines(path)]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except _UNREADABLE as error:
        raise UserError(f"{path}: truncated or not JSON lines ({error}); delete it to do that step again") from error


def text_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file that line feeds part, those that hold something; a byte order mark is no part of it.

    JSON lines may contain what else Python takes for the end of a line (U+2028, U+0085 ...).

    Raises:
        OSError, UnicodeDecodeError: it cannot be read.
    """
    return [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]


def read_record(kind: type[Record], path: Path) -> Record:
    """A dataclass from a JSON file; fields that the file lacks take their defaults, others in it are left out.

    Raises:
        UserError: no such file, not JSON, or not such a record; names the file and the first field that is wrong.
    """
    return as_record(kind, read_json(path), path)


def read_sealed(kind: type[Record], path: Path, remedy: str) -> Record:
    """What `sealed_bytes` wrote, or a record of an earlier version that has no seal.

    Raises:
        UserError: see `read_record`; it is not what was written; `remedy` says what to do then.
    """
    content = read_json(path, remedy)
    sealed = isinstance(content, dict) and SEAL in content
    if sealed and content[SEAL] != digest({name: value for name, value in content.items() if name != SEAL}):
        raise UserError(f"{path}: damaged, not what the run wrote; {remedy}")
    return as_record(kind, content, path)


def read_records(kind: type[Record], path: Path) -> list[Record]:
    """Dataclasses from a JSON-lines file; see `read_record`."""
    return [as_record(kind, row, f"{path}, line {number}") for number, row in enumerate(read_jsonl(path), start=1)]


def as_record(kind: type[Record], content: Any, where: object) -> Record:
    """A dataclass (or any annotated type) from plain values, nested ones and tuples included.

    Raises:
        UserError: `content` is not such a record; says `where`, and the first field that is wrong.
    """
    adapter: TypeAdapter[Record] = _adapter(kind)  # type: ignore[arg-type]
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole of it"
        message = f"{field}: {first['msg'].lower()}"
        raise UserError(f"{where}: not what this version of heal writes ({message})") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
