"""Randomness derived from what a number is for, never from a running stream.

A run that was killed and continued draws the same numbers as one that was not, and neither the
batch size nor the order of the work decides anything.
"""

import hashlib
import random
from typing import TypeVar

import torch

T = TypeVar("T")


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from (seed, round, stage, index, ...); the same parts give the same seed anywhere."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def shuffled(items: list[T], *parts: int | str) -> list[T]:
    """A copy of `items` in an order that depends on `parts` alone."""
    copy = list(items)
    random.Random(derive_seed(*parts)).shuffle(copy)
    return copy
