"""A steering vector: one direction a block, added to the block's output."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from heal.errors import UserError
from heal.models.language_model import LanguageModel
from heal.steering.intervention import Coefficient


@dataclass(frozen=True)
class SteeringVector:
    """`h_l <- h_l + c * v_l` at every position, prompt included.

    Attributes:
        directions: block index -> `v_l` of shape `[D]`, float32.
        method: how it was extracted.
        model: name of the model it was extracted from.
        trait: name of the trait.
        c_star: the calibrated coefficient, once known.
    """

    directions: dict[int, Tensor]
    method: str
    model: str
    trait: str
    c_star: float | None = None

    @contextmanager
    def applied(self, language_model: LanguageModel, coefficient: Coefficient) -> Iterator[None]:
        """Adds `coefficient * v_l` to the output of each of its blocks inside the context.

        Args:
            language_model: the model to shift.
            coefficient: one number, or one for each row of the batches that run inside.

        Raises:
            UserError: the vector does not fit the model.
        """
        self.check_fits(language_model)
        with ExitStack() as stack:
            for layer, v_D in self.directions.items():
                hook = _adder(v_D.to(language_model.device), coefficient)
                handle = language_model.blocks[layer].register_forward_hook(hook)
                stack.callback(handle.remove)
            yield

    def check_fits(self, language_model: LanguageModel) -> None:
        """Raises UserError when the model has another name, too few blocks, or another hidden size."""
        if self.model != language_model.name:
            raise UserError(f"a steering vector of model '{self.model}' was applied to '{language_model.name}'")
        width = language_model.model.config.get_text_config().hidden_size
        deepest = max(self.directions)
        if deepest >= len(language_model.blocks) or any(v.shape != (width,) for v in self.directions.values()):
            shapes = sorted({tuple(v.shape) for v in self.directions.values()})
            raise UserError(
                f"a steering vector for block {deepest} with shapes {shapes} does not fit a model of "
                f"{len(language_model.blocks)} blocks of width {width}"
            )

    def cosine(self, other: "SteeringVector") -> float:
        """Mean cosine with `other` over the blocks that both have; NaN when they share none."""
        shared = sorted(self.directions.keys() & other.directions.keys())
        cosines = [torch.cosine_similarity(self.directions[k], other.directions[k], dim=0) for k in shared]
        return float(torch.stack(cosines).mean()) if cosines else float("nan")

    def with_c_star(self, c_star: float) -> "SteeringVector":
        """The same vector with its calibrated coefficient."""
        return replace(self, c_star=c_star)

    def to_bytes(self) -> bytes:
        """A safetensors file's bytes, metadata included; the same vector gives the same bytes."""
        metadata = {
            "method": self.method,
            "model": self.model,
            "trait": self.trait,
            "layers": json.dumps(sorted(self.directions)),
            "c_star": json.dumps(self.c_star),
        }
        tensors = {f"block.{layer}": v.contiguous() for layer, v in sorted(self.directions.items())}
        return _in_order(save(tensors, metadata=metadata))

    @staticmethod
    def load(path: Path) -> "SteeringVector":
        """Reads a vector.

        Raises:
            UserError: not a safetensors file, or not one that `to_bytes` wrote.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                directions = {int(name.removeprefix("block.")): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if not directions:
                raise ValueError("no directions")
            return SteeringVector(
                directions=dict(sorted(directions.items())),
                method=metadata["method"],
                model=metadata["model"],
                trait=metadata["trait"],
                c_star=json.loads(metadata["c_star"]),
            )
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise UserError(f"{path}: not a steering vector of heal ({' '.join(str(error).split())})") from error


def _in_order(content: bytes) -> bytes:
    """The same safetensors file with its header sorted: safetensors writes metadata in a random order."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def _adder(v_D: Tensor, coefficient: Coefficient) -> Callable:
    c = torch.as_tensor(coefficient, dtype=torch.float32, device=v_D.device)
    shift = c * v_D if c.ndim == 0 else (c[:, None] * v_D)[:, None, :]

    def add(module, inputs, h_BTD: Tensor) -> Tensor:
        return h_BTD + shift.to(h_BTD.dtype)

    return add
