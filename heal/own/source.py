"""Reads whatever `datasets` reads: a file, a folder or a dataset of the hub, one split of it, as rows and columns."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

from heal.errors import UserError, nearest

MOST = 10_000  # rows that are taken; more are refused, because a run's facts hold every text
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".txt": ("text", {}),
}
HELP = "a file (JSON lines, JSON, CSV, TSV, Parquet, text), a folder or a hub id (ID:CONFIG), then @SPLIT, then #COLUMN"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """One split of a dataset as it was asked for: `key=PLACE[:CONFIG][@SPLIT][#COLUMN,...]`.

    Attributes:
        key: the key of the recipe that asks for it.
        spec: its value.
        place: a path, or a hub id.
        config, split: of the dataset; None: its only or default one, and `train`.
        columns: those that were named.
    """

    key: str
    spec: str
    place: str
    config: str | None
    split: str | None
    columns: tuple[str, ...]

    @staticmethod
    def parse(key: str, spec: str) -> "Source":
        """What `key=spec` asks for; a path that is there is one, whatever is in its name."""
        place, config, split, columns = spec, None, None, ""
        if not Path(place).expanduser().exists():
            place, _, columns = place.partition("#")
        if not Path(place).expanduser().exists():
            place, _, said = place.partition("@")
            split = said or None
        if not Path(place).expanduser().exists():
            name, _, said = place.partition(":")
            if said and _HUB_ID.fullmatch(name):
                place, config = name, said
        named = tuple(column.strip() for column in columns.split(",") if column.strip())
        return Source(key, spec, place, config, split, named)

    @property
    def said(self) -> str:
        """As an error begins."""
        return f"{self.key}={self.spec}"

    def column(self, there: Sequence[str], usual: Sequence[str], named: int = 0) -> str:
        """The column that was named, else the first of the `usual` ones that is there, else the only one.

        Args:
            there: the columns of the data.
            usual: names by which such a column goes.
            named: which of the named columns it is.

        Raises:
            UserError: there is no such column, or none is named and none is usual.
        """
        if len(self.columns) > named:
            if self.columns[named] not in there:
                raise UserError(
                    f"{self.said}: no column '{self.columns[named]}'{nearest(self.columns[named], [*there])}"
                )
            return self.columns[named]
        found = [name for name in usual if name in there]
        if found or len(there) == 1:
            return (found or list(there))[0]
        raise UserError(
            f"{self.said}: none of its columns ({', '.join(there)}) is called {' or '.join(usual)}; name one as in "
            f"{self.key}={self.place}#{there[0]}"
        )


@dataclass(frozen=True)
class Table:
    """The rows of a source, at least one."""

    source: Source
    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]


@cache
def read_table(key: str, spec: str) -> Table:
    """The rows that `key=spec` asks for; read once a process.

    Raises:
        UserError: there is no such file, dataset or split, it cannot be read, or it has no rows or too many.
    """
    source = Source.parse(key, spec)
    split = _loaded(source)
    if not len(split) or not split.column_names:
        raise UserError(f"{source.said}: it has no rows")
    if len(split) > MOST:
        raise UserError(
            f"{source.said}: it has {len(split):,} rows, and at most {MOST:,} are taken; name some, as in "
            f"{key}={source.place}@{source.split or 'train'}[:1000]"
        )
    return Table(source, tuple(split.column_names), tuple(split))


def _loaded(source: Source) -> Any:
    """The split as a `datasets.Dataset`."""
    path = Path(source.place).expanduser()
    _refuse_missing(source, path)
    import datasets
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    for library in ("datasets", "huggingface_hub"):
        getLogger(library).setLevel(CRITICAL)  # what they log, retries included, is in what they raise
    try:
        if path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(str(path))
            return saved if isinstance(saved, datasets.Dataset) else saved[source.split or "train"]
        if path.is_file():
            builder, options = FORMS[path.suffix.lower()]
            return datasets.load_dataset(builder, data_files=str(path), split=source.split or "train", **options)
        return datasets.load_dataset(source.place, source.config, split=source.split or "train")
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        raise UserError(f"{source.said}: datasets cannot read it ({_cause(error)})") from error


def _refuse_missing(source: Source, path: Path) -> None:
    """UserError for a path that is not there, a file that is empty or whose ending says no form."""
    if path.is_file():
        if path.suffix.lower() not in FORMS:
            raise UserError(f"{source.said}: a file ends in {', '.join(FORMS)}, by which its form is known")
        with suppress(OSError):  # which datasets says itself
            if not path.read_bytes().strip():
                raise UserError(f"{source.said}: the file is empty")
    elif not path.is_dir() and (path.suffix.lower() in FORMS or not _HUB_ID.fullmatch(source.place)):
        raise UserError(f"{source.said}: no such file; expected {HELP}")


def _cause(error: BaseException) -> str:
    """What went wrong underneath, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
