"""The adapter that the run exported, export/adapter."""

from heal.errors import UserError
from heal.hub.bundle import Bundle
from heal.hub.exported import collect as collect_export
from heal.hub.source import Source


def collect(source: Source, name: str) -> Bundle:
    """UserError where the run has no export of this kind; see `heal.hub.exported`."""
    return of_kind("adapter", source, name)


def of_kind(kind: str, source: Source, name: str) -> Bundle:
    """The run's export of a kind, as `heal export format=KIND` writes it."""
    path = source.folder.path / "export" / kind
    if not path.is_dir():
        raise UserError(f"{path}: not there; heal export run={source.folder.path} format={kind} writes it")
    return collect_export(path, source, name)
