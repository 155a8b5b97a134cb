"""Which keys of the recipe's `steer` section a method takes, and what it does not take."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from heal.config import SteerConfig
from heal.errors import UserError
from heal.steering.methods import ORDINARY, additive, method_named

_OF_EVERY_METHOD = ("method", "pairs", "band")


def methods_of(steer: SteerConfig) -> list[str]:
    """The method, or those among which it is to be chosen."""
    return [steer.method] if steer.method is not None else list(ORDINARY)


def settled(steer: SteerConfig) -> tuple[str, tuple[float, float]]:
    """The method, and the band as fractions of the depth, of settings that leave neither to be chosen.

    Raises:
        UserError: one of them is `auto`.
    """
    if steer.method is None or steer.band is None:
        name = "band" if steer.band is None else "method"
        raise UserError(f"steer.{name}=auto: only heal train chooses it, before its first round; give one here")
    return steer.method, steer.band


def check_joint(steer: SteerConfig) -> None:
    """Holds the `steer` section against several traits, whose directions are added up as one vector.

    Raises:
        UserError: a method whose shifts do not add up; the method or the band is `auto`, which one trait chooses.
    """
    if steer.open:
        name = "band" if steer.band is None else "method"
        raise UserError(f"steer.{name}=auto: it is chosen by the gain of one trait; with several, say which")
    if steer.method not in additive():
        raise UserError(
            f"steer.method={steer.method}: its shift is not h + c v, so the directions of several traits cannot be "
            f"added up; {' and '.join(additive())} can"
        )


def method_settings(steer: SteerConfig) -> dict[str, Any]:
    """The settings of `steer.method` by name, as its `fit` takes them (and `centre`).

    Raises:
        ValueError: the method is still to be chosen.
    """
    if steer.method is None:
        raise ValueError("method_settings: no method")
    return {key: getattr(steer, key) for key in method_named(steer.method).settings}


def check_settings(steer: SteerConfig, names: Sequence[str]) -> None:
    """Holds the recipe's `steer` section against the methods that it is for.

    Raises:
        UserError: no such method; a key is set that none of the methods takes, or that changes nothing for them; more
            clusters than pairs.
    """
    methods = [method_named(name) for name in names]
    for item in fields(steer):
        value = getattr(steer, item.name)
        taken = any(item.name in method.settings for method in methods)
        if item.name in _OF_EVERY_METHOD or taken or value == item.default or not methods:
            continue
        shown = f"steer.{item.name}={str(value).lower() if isinstance(value, bool) else value}"
        chosen = " or ".join(f"steer.method={name}" for name in names)
        if item.name == "centre" and all(method.origin_free for method in methods):
            raise UserError(
                f"{shown}: the mean of both personas' activations cancels out in {' and '.join(names)}, so centring "
                "changes nothing; leave it out"
            )
        own = list(dict.fromkeys(key for method in methods for key in method.settings))
        takes = f"it takes {' and '.join(own)}" if own else "it has none of its own"
        raise UserError(f"{shown}: not a setting of {chosen}; {takes}")
    if any("clusters" in method.settings for method in methods) and steer.clusters > steer.pairs:
        raise UserError(f"steer.clusters={steer.clusters}: more than steer.pairs={steer.pairs}")
