"""Keys of the recipe as keywords of a function: the same names, types, ranges, defaults and help, from one place."""

import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePath
from typing import Any, TypeVar

import numpy as np
from omegaconf import OmegaConf

from heal.config import Recipe
from heal.errors import UserError, nearest
from heal.keys import Key, keys
from heal.recipe import check, set_key

F = TypeVar("F", bound=Callable[..., Any])


class Keywords:
    """What a function takes of the recipe: keys of some sections by their last name.

    Attributes:
        taken: the keys by the name that they have as keywords.
    """

    def __init__(self, *sections: str, without: Collection[str] = ()):
        """Of `sections` ("steer"; a single key is one, too: "filter.max_repetition") all but `without`."""
        chosen = [item for item in keys() if any(f"{item.name}.".startswith(f"{section}.") for section in sections)]
        self.taken: dict[str, Key] = {_last(item): item for item in chosen if _last(item) not in without}
        assert len(self.taken) == sum(_last(item) not in without for item in chosen), "two keys have one name"

    def documented(self, function: F) -> F:
        """Puts the keys into the signature of a function that takes `**keywords`, and into its docstring."""
        signature = inspect.signature(function)
        own = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=item.written(item.default), annotation=item.type
            )
            for name, item in self.taken.items()
        ]
        function.__signature__ = signature.replace(parameters=[*own, *taken])  # type: ignore[attr-defined]
        lines = [
            f"{name}: {item.help} ({item.type_name}; default {item.written(item.default)!r})"
            for name, item in self.taken.items()
        ]
        function.__doc__ = f"{inspect.getdoc(function)}\n\nKeywords, keys of the recipe:\n    " + "\n    ".join(lines)
        return function

    def recipe(self, function: Callable[..., Any], given: Mapping[str, Any]) -> Recipe:
        """The recipe's defaults with the keywords of a call.

        Raises:
            UserError: an unknown keyword (names the nearest), a wrong type, a value out of range, or a contradiction.
        """
        config = OmegaConf.structured(Recipe)
        for name, value in given.items():
            if name not in self.taken:
                valid = list(inspect.signature(function).parameters)
                raise UserError(f"{function.__name__}(): unknown keyword '{name}'{nearest(name, valid)}")
            set_key(config, self.taken[name].name, _plain(value), f"in {function.__name__}()")
        recipe = OmegaConf.to_object(config)
        assert isinstance(recipe, Recipe)
        check(recipe)
        return recipe


def _last(item: Key) -> str:
    return item.name.rpartition(".")[2]


def _plain(value: Any) -> Any:
    """Numbers of numpy and paths as the recipe has them."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, PurePath) else value
