"""The adapters that a round can train, by the names of `heal.init`: one table, read without loading peft."""

from dataclasses import dataclass
from typing import Literal

from heal.errors import UserError, nearest


@dataclass(frozen=True)
class AdapterKind:
    """One way to adapt a weight.

    Attributes:
        help: what `--help` says of it.
        initial: peft's `init_lora_weights`.
        refused: why a history of such rounds cannot be kept (docs/method.md, Accumulator); empty where it can.
    """

    help: str
    initial: bool | Literal["gaussian"] = True
    refused: str = ""


ADAPTER_KINDS: dict[str, AdapterKind] = {
    "default": AdapterKind("LoRA as peft initialises it: A uniform (Kaiming), B = 0"),
    "gaussian": AdapterKind("LoRA with a Gaussian A, B = 0", initial="gaussian"),
    "pissa": AdapterKind(
        "refused: it changes the base",
        refused="PiSSA changes the base's weights, so gates (0,0) would not be the base",
    ),
    "dora": AdapterKind(
        "refused: it cannot be folded",
        refused="DoRA rescales W itself, so rounds cannot be folded by concatenation",
    ),
}


def foldable(name: str) -> AdapterKind:
    """The kind of that name.

    Raises:
        UserError: there is none (names the nearest), or its rounds cannot be folded (says why).
    """
    if name not in ADAPTER_KINDS:
        raise UserError(f"heal.init={name}: no such adapter{nearest(name, list(ADAPTER_KINDS))}")
    kind = ADAPTER_KINDS[name]
    if kind.refused:
        raise UserError(f"heal.init={name}: {kind.refused}")
    return kind
