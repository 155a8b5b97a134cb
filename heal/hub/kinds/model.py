"""The merged model that the run exported, export/model."""

from heal.hub.bundle import Bundle
from heal.hub.kinds.adapter import of_kind
from heal.hub.source import Source


def collect(source: Source, name: str) -> Bundle:
    """UserError where the run has no export of this kind; see `heal.hub.exported`."""
    return of_kind("model", source, name)
