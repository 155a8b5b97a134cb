"""The keys of a recipe, from its dataclasses: name, type, default, range, and their lines in `--help`."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from heal import choices
from heal.config import AS_DEFAULT, Recipe
from heal.errors import UserError
from heal.recipe_files import RECIPES, available
from heal.scale import AUTO


@dataclasses.dataclass(frozen=True)
class Key:
    """One settable key: its dotted name, type, default, meaning, range and choices (see `heal.config.key`)."""

    name: str
    type: Any
    default: Any
    help: str
    minimum: float | None
    maximum: float | None
    choices: str | Mapping[str, str] | None = None
    before: Any = AS_DEFAULT
    auto: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The texts that it takes; empty where that is not a choice between some."""
        if isinstance(self.choices, str):
            return choices.names(self.choices)
        if typing.get_origin(self.type) is typing.Literal:
            return typing.get_args(self.type)
        return tuple(self.choices or ())

    @property
    def meanings(self) -> dict[str, str]:
        """What each choice means, as far as the package or table of the choices says it."""
        if isinstance(self.choices, str):
            return {name: choices.summary(self.choices, name) for name in self.names}
        return dict(self.choices or {})

    @property
    def takes_text(self) -> bool:
        return self.type is str or self.type == (str | None)

    @property
    def takes_null(self) -> bool:
        return type(None) in typing.get_args(self.type) and not self.auto

    @property
    def takes_texts(self) -> bool:
        return self.type == list[str]

    @property
    def type_name(self) -> str:
        if self.names:
            listed = "|".join((*self.names, AUTO) if self.auto else self.names)
            return f"list of {listed}" if self.takes_texts else listed
        if isinstance(self.type, type) and not typing.get_args(self.type):
            return self.type.__name__
        return str(self.type).replace("None", AUTO) if self.auto else str(self.type)

    def written(self, value: Any) -> Any:
        """A value of the key as a recipe says it: None is `auto` where that is what it stands for."""
        return AUTO if self.auto and value is None else value

    @property
    def shown_default(self) -> str:
        """The default as it could be typed."""
        if self.takes_texts:
            return f"[{','.join(self.default)}]"
        return "''" if self.default == "" else str(self.written(self.default))

    def check_choice(self, value: Any, said: str) -> None:
        """Raises UserError, which begins with `said`, when a text is none of the choices; names the nearest."""
        texts = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        for text in texts:
            if self.names and isinstance(text, str) and text not in self.names and not (self.auto and text == AUTO):
                near = get_close_matches(text, self.names, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise UserError(f"{said}: expected {self.type_name}, default {self.shown_default}{hint}")


def keys(schema: type = Recipe, prefix: str = "") -> Iterator[Key]:
    """Every settable key below `schema`, in the order of the dataclasses; a section's own before those inside it."""

    for item in sorted(dataclasses.fields(schema), key=lambda item: dataclasses.is_dataclass(item.type)):
        name = prefix + item.name
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            yield from keys(item.type, name + ".")
            continue
        factory = item.default_factory
        default = item.default if factory is dataclasses.MISSING else factory()
        yield Key(name, item.type, default, **item.metadata)


@cache
def keys_by_name() -> Mapping[str, Key]:
    """Every settable key by its full name."""
    return {item.name: item for item in keys()}


def key_lines(item: Key, default: str) -> list[str]:
    """A key in `--help`: its default and type, its meaning, and what its choices mean."""
    lines = [f"  {item.name}={default}  ({item.type_name})", f"      {item.help}"]
    for name, meaning in item.meanings.items():
        lines.append(f"        {meaning}" if meaning.startswith(f"{name}: ") else f"        {name}: {meaning}")
    return lines


def help_text() -> str:
    """`--help`, from the dataclasses."""
    lines = [
        "usage: heal train [recipe=NAME|PATH] [trait=NAME|PATH] [key=value ...]",
        '       heal train [recipe=NAME|PATH] positive="You ..." negative="You ..." [key=value ...]',
        "       accelerate launch heal/train.py ... (the same, from a clone)",
        "",
        "Trains a trait into a language model: steer, distil, heal, fold, round after round.",
        "The same command again continues an unfinished run.",
        "",
        f"recipes: {', '.join(available(RECIPES))}",
        f"traits:  {', '.join(available(RECIPES / 'traits'))}",
        "",
        "keys (type, default, meaning):",
    ]
    section = ""
    for item in keys():
        head = item.name.rpartition(".")[0]
        if head != section:
            section = head
            lines.append(f"\n  [{section}]")
        lines += key_lines(item, item.shown_default)
    return "\n".join(lines)
