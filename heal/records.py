"""Typed records on disk: dataclasses to JSON and back, every file read and written in one way."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from heal.errors import UserError

Record = TypeVar("Record")


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


def read_json(path: Path) -> Any:
    """UserError when there is no such file, or it is not whole JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: truncated or not JSON ({error}); delete it to do that step again") from error


def read_jsonl(path: Path) -> list[Any]:
    """UserError when there is no such file, or a line of it is not JSON."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: truncated or not JSON lines ({error}); delete it to do that step again") from error


def read_record(kind: type[Record], path: Path) -> Record:
    """A dataclass from a JSON file; fields that the file lacks take their defaults, others in it are left out.

    Raises:
        UserError: no such file, not JSON, or not such a record; names the file and the first field that is wrong.
    """
    return as_record(kind, read_json(path), path)


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
