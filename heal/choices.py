"""Choices that derive from what is there: a choice is a file of a package, and its name is the file's.

The names of steering methods, divergences, readouts or trackers are read off their folder without importing them, so
that the recipe, `--help` and an error can name them before a heavy library is loaded. A new one is one new file.
"""

import ast
import importlib
import pkgutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from heal.errors import UserError, nearest


@cache
def names(package: str) -> tuple[str, ...]:
    """The choices in `package` ("heal.steering.methods"): its modules, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(_folders(package))))


@cache
def summary(package: str, name: str) -> str:
    """What a choice says of itself: the first line of its docstring."""
    for folder in _folders(package):
        path = Path(folder) / f"{name}.py"
        if path.is_file():
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            return text.partition("\n")[0]
    raise KeyError(f"{package}: no module {name}")


def load(package: str, name: str, attribute: str) -> Any:
    """What the module of a choice defines under `attribute`.

    Raises:
        UserError: there is no such choice; names the nearest.
    """
    if name not in names(package):
        raise UserError(f"'{name}': no such module in {package}{nearest(name, list(names(package)))}")
    return getattr(importlib.import_module(f"{package}.{name}"), attribute)


def load_all(package: str, attribute: str, *, optional: bool = False) -> dict[str, Any]:
    """The same of every choice, by name; with `optional` those that do not define it are left out."""
    modules = {name: importlib.import_module(f"{package}.{name}") for name in names(package)}
    return {
        name: getattr(module, attribute)
        for name, module in modules.items()
        if not optional or hasattr(module, attribute)
    }


def _folders(package: str) -> list[str]:
    spec = find_spec(package)
    return list(spec.submodule_search_locations or []) if spec else []
