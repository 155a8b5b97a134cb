"""The run's texts, as `heal dataset` writes them, with what a hub wants to know of them."""

import math

from huggingface_hub import DatasetCard

from heal.export.dataset import card_text, table_files, tables_of
from heal.hub import metadata
from heal.hub.bundle import Bundle
from heal.hub.reproduction import HEADING, reproduction
from heal.hub.rules import SIZES
from heal.hub.source import Source

_LARGEST = (1_000, 10_000, 100_000, 1_000_000, math.inf)  # rows below which a set has the size of SIZES


def collect(source: Source, name: str) -> Bundle:
    """UserError where no round is finished, or a file is damaged."""
    tables = tables_of(source.folder)
    card = DatasetCard(card_text(source.folder, tables, source.base or "a model of its maker"))
    rows = sum(map(len, tables.values()))
    card.data["pretty_name"] = f"{source.trait.name}: texts of a run of heal"
    card.data["annotations_creators"] = card.data["language_creators"] = ["machine-generated"]
    card.data["source_datasets"] = ["original"]
    card.data["size_categories"] = [size for size, below in zip(SIZES, _LARGEST, strict=True) if rows < below][:1]
    made = reproduction(source)
    metadata.describe(card, source)
    metadata.add(card, made.section, HEADING)
    return Bundle("dataset", table_files(tables) | made.files, card, source.base)
