"""Vectors of the user's own, from other tools: one direction for each block, added at every position of its output."""

import re
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from heal.errors import UserError
from heal.models.language_model import LanguageModel
from heal.steering.sites import Site
from heal.steering.vector import SteeringVector

METHOD = "mean_diff"  # what adds a direction to the output of a block
_BLOCK = re.compile(r"(?:^|[^0-9])(\d+)$")
_FORMS = "heal's own, one 1-D tensor for each block whose name ends in its number, or a GGUF control vector"


def read_vector(path: str, language_model: LanguageModel, trait: str) -> SteeringVector:
    """The vector in a file, without a dose: that is found by calibration.

    A vector of heal's own keeps its method. Others are directions by block, counted from 0: safetensors with one 1-D
    tensor for each, whose name ends in the block's number, or a GGUF control vector (`direction.N`), which repeng and
    llama.cpp add to the output of block N as well.

    Args:
        path: a file that ends in .safetensors or .gguf.
        language_model: the model that it is for.
        trait: the name of the trait that it carries.

    Raises:
        UserError: no such file; not a vector; not for this model.
    """
    file = Path(path).expanduser()
    said = f"data.vector={path}"
    if not file.is_file():
        raise UserError(f"{said}: no such file")
    if file.suffix.lower() == ".gguf":
        directions = _gguf(file, said)
    else:
        metadata, directions = _safetensors(file, said)
        if "method" in metadata:
            return _fitting(SteeringVector.load(file), language_model, said)
        if "kind" in metadata:
            raise UserError(f"{said}: a weight difference, which acts on weights; here a vector is required: {_FORMS}")
    blocks: dict[int, Tensor] = {}
    for name, direction in directions.items():
        found = _BLOCK.search(name)
        if found is None or direction.ndim != 1 or int(found[1]) in blocks:
            raise UserError(f"{said}: '{name}' {tuple(direction.shape)} is no direction of a block; expected {_FORMS}")
        blocks[int(found[1])] = direction.float().contiguous()
    if not blocks or not all(v_D.isfinite().all() and v_D.norm() > 0 for v_D in blocks.values()):
        raise UserError(f"{said}: it has no directions, or one that is zero or not finite")
    states = {Site(block): {"v": v_D} for block, v_D in sorted(blocks.items())}
    return _fitting(SteeringVector(states, METHOD, language_model.name, trait), language_model, said)


def _fitting(vector: SteeringVector, language_model: LanguageModel, said: str) -> SteeringVector:
    try:
        vector.check_fits(language_model)
    except UserError as error:
        raise UserError(f"{said}: {error}") from error
    return vector


def _safetensors(file: Path, said: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        cause = " ".join(str(error).split())
        raise UserError(f"{said}: not a readable safetensors file ({cause}); expected {_FORMS}") from error


def _gguf(file: Path, said: str) -> dict[str, Tensor]:
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(file).tensors
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise UserError(f"{said}: not a readable GGUF file ({' '.join(str(error).split())})") from error
    return {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in tensors}
