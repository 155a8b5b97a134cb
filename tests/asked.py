"""Recipes as a user asks for them: a file and words."""

from pathlib import Path

import pytest

from heal.config import Recipe
from heal.errors import UserError
from heal.recipe import (
    load_recipe,
)
from heal.yaml_text import Settings, read_yaml


def load(path: Path, *words: str) -> Recipe:
    return load_recipe([f"recipe={path}", *words])


def read(text: str, folder: Path) -> Settings:
    """The content of a recipe as a run folder holds it."""
    path = folder / "written.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


def refusal(path: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, *words)
    return str(caught.value)
