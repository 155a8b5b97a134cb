"""The licence of a base, which what is made from it carries over."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError

from heal.errors import UserError
from heal.hub.bundle import CARD
from heal.hub.rules import OTHER, Card, license_fault
from heal.hub.source import EMBEDDED, EMBEDDED_LICENSE

_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class License:
    """As a card's front matter has it; `name` and `link` of one that the hub has no identifier for."""

    id: str
    name: str | None = None
    link: str | None = None

    def put(self, card: Card) -> None:
        """Writes it into the card's front matter."""
        for key, value in zip(_KEYS, (self.id, self.name, self.link), strict=True):
            card.data[key] = value

    @property
    def said(self) -> str:
        return f"{self.id} ({self.name})" if self.name else self.id


def given(name: str) -> License:
    """The licence of `license=`; UserError where the hub has no such identifier, or it says too little."""
    if fault := license_fault(name):
        raise UserError(f"license={name}: {fault}")
    if name == OTHER:
        raise UserError(
            "license=other: it has a name and a link; write license, license_name and license_link into the front "
            "matter of the export's README.md"
        )
    return License(name)


def of_card(card: Card) -> License | None:
    """What the card says."""
    name, title, link = (card.data.get(key) for key in _KEYS)
    if isinstance(name, list):
        name = name[0] if name else None
    return None if name is None else License(str(name), title, link)


def of_base(base: str | None, folder: Path | None, api: HfApi | None) -> License | None:
    """What the base's own card says, in its folder, in the cache, or on the hub.

    Args:
        base: what the hub calls it; None: it is not there.
        folder: that it was loaded from; None: from the hub.
        api: of the hub; None: no request is made.
    """
    if base == EMBEDDED:
        return License(EMBEDDED_LICENSE)
    if folder is not None and (folder / CARD).is_file():
        return of_card(ModelCard.load(folder / CARD, ignore_metadata_errors=True))
    if base is None:
        return None
    cached = try_to_load_from_cache(base, CARD)
    if isinstance(cached, str):
        return of_card(ModelCard.load(cached, ignore_metadata_errors=True))
    if api is None:
        return None
    try:
        path = api.hf_hub_download(base, CARD)
    except EntryNotFoundError:  # it has no card
        return None
    return of_card(ModelCard.load(path, ignore_metadata_errors=True))
