"""How an export names the base that it belongs to, so that others can load it."""

from dataclasses import dataclass
from typing import Literal

from heal.config import ModelConfig
from heal.models.embedded import NAME as EMBEDDED_NAME
from heal.models.language_model import LanguageModel

EMBEDDED_HUB = f"HuggingFaceTB/{EMBEDDED_NAME}"


@dataclass(frozen=True)
class Base:
    """The base of an export.

    Attributes:
        name: what a card calls it: the hub id, or a folder's own name.
        reference: what adapter_config.json loads it from: a hub id, or a folder as the user gave it.
        revision: the hub commit that was loaded, else what was asked for; None: unknown.
        source: a hub id (of the recipe, or given with `base=`), a folder of this computer, or the embedded weights.
    """

    name: str
    reference: str
    revision: str | None = None
    source: Literal["hub", "folder", "embedded"] = "hub"

    @property
    def notice(self) -> str | None:
        """What to know of a reference that others cannot load the same weights from; None if they can."""
        if self.source == "folder":
            return (
                f"adapter_config.json names the folder {self.reference}, which only this computer has; if the base is "
                "on the hub, name it with base=HUB_ID"
            )
        if self.source == "embedded":
            return (
                f"adapter_config.json names {EMBEDDED_HUB}, of which the embedded weights are a 4-bit copy: on the "
                "hub's weights the answers differ a little (the card loads the weights that it was trained on)"
            )
        return None


def base_of(language_model: LanguageModel, config: ModelConfig, named: str | None = None) -> Base:
    """The base of an export.

    Args:
        language_model: as it was loaded; from the hub it knows its commit.
        config: what it was loaded by.
        named: what the user names it instead (`base=`); None: as it was loaded.
    """
    if named is not None:
        return Base(named.rstrip("/").rpartition("/")[2] if named.startswith(("/", ".", "~")) else named, named)
    name = base_name(config)
    if config.name == "embedded":
        return Base(name, EMBEDDED_HUB, source="embedded")
    if config.folder:
        return Base(name, config.name, config.revision, "folder")
    commit = getattr(language_model.model.config, "_commit_hash", None)
    return Base(name, name, commit or config.revision)


def base_name(config: ModelConfig) -> str:
    """The hub id, or a local folder's own name: no path of the computer that made the export."""
    if config.name == "embedded":
        return EMBEDDED_HUB
    return config.folder.resolve().name if config.folder else config.name
