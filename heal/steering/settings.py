"""Which keys of the recipe's `steer` section a method takes, and what it does not take."""

from dataclasses import fields
from typing import Any

from heal.config import SteerConfig
from heal.errors import UserError
from heal.steering.methods import METHODS

_OF_EVERY_METHOD = ("method", "pairs", "band")


def method_settings(steer: SteerConfig) -> dict[str, Any]:
    """The settings of the method by name, as its `fit` takes them (and `centre`).

    Raises:
        UserError: a key is set that the method does not take, or that changes nothing for it, or more clusters
            than pairs are asked for.
    """
    method = METHODS[steer.method]
    for item in fields(steer):
        value = getattr(steer, item.name)
        if item.name in (*_OF_EVERY_METHOD, *method.settings) or value == item.default:
            continue
        shown = str(value).lower() if isinstance(value, bool) else value
        if item.name == "centre" and method.origin_free:
            raise UserError(
                f"steer.centre={shown}: the mean of both personas' activations cancels out in {method.name}, so "
                "centring changes nothing; leave it out"
            )
        taken = f"it takes {' and '.join(method.settings)}" if method.settings else "it has none of its own"
        raise UserError(f"steer.{item.name}={shown}: not a setting of steer.method={method.name}; {taken}")
    if "clusters" in method.settings and steer.clusters > steer.pairs:
        raise UserError(f"steer.clusters={steer.clusters}: more than steer.pairs={steer.pairs}")
    return {name: getattr(steer, name) for name in method.settings}
