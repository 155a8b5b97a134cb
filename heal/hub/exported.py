"""An adapter or a model that `heal export` wrote, as what is pushed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from heal.errors import UserError
from heal.export.composition import Composition
from heal.hub import metadata
from heal.hub.bundle import CARD, Bundle
from heal.hub.reproduction import HEADING, reproduction
from heal.hub.rules import id_fault
from heal.hub.source import NONE, Source, checked_base
from heal.records import as_record, json_bytes, read_json
from heal.run.facts import Exported
from heal.run.files import holds
from heal.run.folder import EXPORT_RECORD

ADAPTER_CONFIG = "adapter_config.json"


def collect(path: Path, source: Source | None, name: str, base: str | None = None) -> Bundle:
    """The files of an export, and its card with what a hub wants to know.

    Args:
        path: the folder of the export.
        source: the run that it was made from; None: nobody knows.
        name: of the repository.
        base: where nobody knows the run, `base=` as it was typed; None: what the card says.

    Raises:
        UserError: it is no export, a file of it is not what was written, or its base has no name on a hub.
    """
    record = _whole_record(path)
    card = ModelCard((path / CARD).read_text(encoding="utf-8"))
    named = source.base if source is not None else _named(path, card, base)
    card.data["base_model"] = named
    if named is None:
        card.data.pop("base_model_relation")
    files: dict[str, Path | bytes] = {
        str(file.relative_to(path)): file
        for file in path.rglob("*")
        if file.is_file() and file.name != CARD and not file.name.startswith(".")
    }
    files |= _on_base(path, record, named)
    if source is not None:
        metadata.describe(card, source)
        if record.get("rounds") and record.get("gate") == 1 and not record.get("lost"):
            metadata.add_results(card, name, source, record["rounds"])
        made = reproduction(source)
        files |= {file: content for file, content in made.files.items() if file not in files}
        metadata.add(card, made.section, HEADING)
    if "composition" in record:
        metadata.add_composed(card, name, as_record(Composition, record["composition"], path / EXPORT_RECORD))
    return Bundle("model", files, card, named)


def _named(path: Path, card: ModelCard, given: str | None) -> str | None:
    """What the hub calls the base of an export whose run nobody knows."""
    if given is not None:
        return None if given == NONE else checked_base(given)
    said = card.data.get("base_model")
    if not isinstance(said, str) or id_fault(said):
        raise UserError(
            f"{path}: its card calls the base {said}: say what the hub calls it with base=user/name, or base=none if "
            "it is not there"
        )
    return said


def _whole_record(path: Path) -> dict[str, Any]:
    """What the export's record says; UserError where there is none, or a file is not what was exported."""
    if not (path / EXPORT_RECORD).is_file() or not (path / CARD).is_file():
        raise UserError(f"{path}: not an export of heal; heal export writes one")
    content = read_json(path / EXPORT_RECORD, "export again")
    for name, digest in as_record(Exported, content, path / EXPORT_RECORD).files.items():
        if not holds(path / name, digest):
            raise UserError(f"{path / name}: missing or not what was exported; export again")
    assert isinstance(content, dict)
    return content


def _on_base(path: Path, record: dict[str, Any], base: str | None) -> dict[str, Path | bytes]:
    """adapter_config.json with the hub's name of the base in place of a folder of this computer; nothing else does."""
    file = path / ADAPTER_CONFIG
    if base is None or not file.is_file():
        return {}
    config = read_json(file, "export again")
    if config.get("base_model_name_or_path") == base:
        return {}
    content = json.dumps(config | {"base_model_name_or_path": base}, indent=2, sort_keys=True).encode()
    digests = record["files"] | {ADAPTER_CONFIG: hashlib.sha256(content).hexdigest()}
    return {ADAPTER_CONFIG: content, EXPORT_RECORD: json_bytes(record | {"files": digests})}
