"""Which versions a run is computed with: what a report of a fault needs first."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from heal import __version__

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate")


def versions() -> dict[str, str]:
    """Of heal, the packages that it computes with, and Python; nothing is imported for it."""
    return {"heal": __version__} | {name: _installed(name) for name in PACKAGES} | {"python": platform.python_version()}


def versions_line() -> str:
    """`heal 0.3.0, torch 2.13.0, ...`."""
    return ", ".join(f"{name} {number}" for name, number in versions().items())


def device_name(device: "torch.device") -> str:
    """`cpu`, or a GPU's number and what it is called."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
