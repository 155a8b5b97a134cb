"""What a hub checks of a card before it takes a commit, checked without it (`/api/validate-yaml` is its own check)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from heal.errors import nearest
from heal.records import text_lines

Card = ModelCard | DatasetCard
RELATIONS = ("adapter", "finetune", "merge", "quantized")
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")
MISSING_LICENSE = "license: missing"
OTHER = "other"  # a licence with a name of its own
# Identifiers of https://huggingface.co/docs/hub/repositories-licenses, one a line.
_LICENSES = Path(__file__).resolve().parent.parent / "data" / "licenses.txt"
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")  # ISO 639-1, -2, -3


def faults(card: Card) -> list[str]:
    """What a hub would refuse, or could not show, of the card's front matter; one line each."""
    data = card.data.to_dict()
    return [*_license(data), *_language(data), *_relation(data), *_texts(data), *_sizes(data), *_results(data)]


def id_fault(name: str) -> str | None:
    """Why `name` is not the id of a repository with its owner, as in user/name; None if it is."""
    if name.count("/") != 1:
        return "expected user/name"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        return " ".join(str(error).split())
    return None


def license_fault(name: str) -> str | None:
    """Why `name` is no licence that a hub knows; None if it is one."""
    known = text_lines(_LICENSES)
    if name in known:
        return None
    close = nearest(name, known)
    return f"no licence of the hub's list{close if 'mean' in close else ''}"


def _license(data: dict[str, Any]) -> Iterator[str]:
    names = _list(data.get("license"))
    if not names:
        yield MISSING_LICENSE
    for name in names:
        if fault := license_fault(str(name)):
            yield f"license: {name}: {fault}"
    if OTHER in names and not data.get("license_name"):
        yield "license: other: license_name is missing"


def _language(data: dict[str, Any]) -> Iterator[str]:
    for name in _list(data.get("language")):
        if not _LANGUAGE.fullmatch(str(name)):
            yield f"language: {name}: expected a code of ISO 639, such as en"


def _relation(data: dict[str, Any]) -> Iterator[str]:
    for name in _list(data.get("base_model")):
        if fault := id_fault(str(name)):
            yield f"base_model: {name}: {fault}"
    relation = data.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        yield f"base_model_relation: {relation}: expected one of {', '.join(RELATIONS)}"


def _texts(data: dict[str, Any]) -> Iterator[str]:
    for name in ("tags", "task_categories", "datasets"):
        value = data.get(name)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(text, str) and text for text in value)
        ):
            yield f"{name}: expected a list of texts"
    for name in ("pipeline_tag", "library_name", "pretty_name"):
        if not isinstance(data.get(name, ""), str):
            yield f"{name}: expected a text"


def _sizes(data: dict[str, Any]) -> Iterator[str]:
    for name in _list(data.get("size_categories")):
        if name not in SIZES:
            yield f"size_categories: {name}: expected one of {', '.join(SIZES)}"


def _results(data: dict[str, Any]) -> Iterator[str]:
    """Of a model-index, whose shape huggingface_hub has read already."""
    for entry in data.get("model-index", []):
        for metric in (metric for result in entry["results"] for metric in result["metrics"]):
            if not isinstance(metric["value"], int | float | str):
                yield f"model-index: {metric['type']}: its value is no number"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
