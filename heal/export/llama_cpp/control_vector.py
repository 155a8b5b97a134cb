"""A steering vector as a GGUF control vector, as llama.cpp (`--control-vector`) reads it.

`direction.N` is added to the output of block N, counted from 0, at every position; the dose is inside.
"""

from collections.abc import Mapping
from pathlib import Path

import gguf
import torch
from torch import Tensor

from heal.errors import UserError
from heal.export.factors import ExportError
from heal.export.llama_cpp.model import finish

FILE = "control-vector.gguf"


def write_control_vector(shifts: Mapping[int, Tensor], architecture: str, path: Path) -> None:
    """Writes `c v` of each steered block.

    Args:
        shifts: block -> `c v`, `[D]`, float32.
        architecture: model type of the base, as transformers calls it (llama.cpp's names are the same or near).
        path: the file.

    Raises:
        UserError: block 0 is steered, which llama.cpp does not.
    """
    if 0 in shifts:
        raise UserError(
            "format=gguf: llama.cpp adds no control vector to the output of block 0; extract with a steer.band that "
            "begins later, or use format=adapter"
        )
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", architecture)
    writer.add_uint32("controlvector.layer_count", len(shifts))
    for layer, shift_D in sorted(shifts.items()):
        writer.add_tensor(f"direction.{layer}", shift_D.float().cpu().contiguous().numpy())
    finish(writer)


def check_control_vector(shifts: Mapping[int, Tensor], path: Path) -> None:
    """Raises ExportError unless the file holds exactly `shifts`."""
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in gguf.GGUFReader(path).tensors}
    wanted = {f"direction.{layer}": shift_D.float().cpu() for layer, shift_D in shifts.items()}
    if found.keys() != wanted.keys() or not all(torch.equal(found[name], wanted[name]) for name in wanted):
        raise ExportError("the exported control vector is not the one that was written; it was removed.")
