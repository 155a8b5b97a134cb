"""What LoRA covers of the linear layers of the trained blocks, as it is printed and recorded."""

from collections.abc import Sequence
from dataclasses import dataclass

from heal.console import counted


@dataclass(frozen=True)
class Coverage:
    """What LoRA covers of the linear layers of the chosen blocks.

    Attributes:
        covered: linear layers that carry it.
        parts: what these are.
        choosing: left alone because they choose experts, tokens or streams.
        read_directly: left alone because their weights are read without calling them (LoRA would be skipped).
        converted: left alone because peft takes their names for those of expert tensors.
        experts: fused expert tensors, which are no linear layers.
    """

    covered: int
    parts: tuple[str, ...]
    choosing: int = 0
    read_directly: int = 0
    converted: int = 0
    experts: int = 0

    def __str__(self) -> str:
        linears = self.covered + self.choosing + self.read_directly + self.converted
        said = f"LoRA covers {self.covered} of {linears} linear layers: {_listed(self.parts)}"
        left = [
            f"{count} {why}"
            for count, why in (
                (self.choosing, "that choose experts, tokens or streams"),
                (self.read_directly, "whose weights are read without calling them"),
                (self.converted, "that peft takes for expert tensors"),
            )
            if count
        ]
        if self.experts:
            left.append(counted(self.experts, "expert tensor"))
        return f"{said}; left alone: {', '.join(left)}" if left else said


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
