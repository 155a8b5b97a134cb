"""Reads any intervention that heal writes."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from heal.errors import UserError
from heal.steering.vector import SteeringVector
from heal.steering.weights import WeightDifference


def load_intervention(path: str | Path) -> SteeringVector | WeightDifference:
    """The steering vector or weight difference in a file, as its metadata says.

    Raises:
        UserError: not a safetensors file, or one that holds neither.
    """
    try:
        with safe_open(Path(path).expanduser(), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({' '.join(str(error).split())})") from error
    if "kind" in metadata:
        return WeightDifference.load(path)
    if "method" in metadata:
        return SteeringVector.load(path)
    raise UserError(f"{path}: neither a steering vector nor a weight difference of heal")
