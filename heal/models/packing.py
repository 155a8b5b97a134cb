"""Packs rows of token ids into few forward passes, computing shared beginnings once.

Rows with a common beginning (one system prompt, one question, several answers) are merged into a prefix tree: a
token that several rows share occurs once, and a mask lets every token attend to its ancestors and
nothing else. Attention is causal, so hidden states and gradients are those of each row by itself.

Shape suffixes: B trees, N nodes of the largest tree, D hidden size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Rows = Sequence[Sequence[int]]

MIN_SHARED = 8  # tokens that a row must share with its neighbour to join the neighbour's tree


@dataclass(frozen=True)
class Packed:
    """One forward pass over several rows.

    Attributes:
        ids_BN: token ids, padded on the right.
        position_BN: depth of each node; None where every tree is a single row.
        mask_B1NN: 0 where a node attends to another, the dtype's minimum elsewhere; None where every tree is a
            single row, which needs no mask beside causal attention.
        nodes: for each row, the places of its tokens in the flattened `[B * N]` hidden states.
    """

    ids_BN: Tensor
    position_BN: Tensor | None
    mask_B1NN: Tensor | None
    nodes: tuple[Tensor, ...]

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the decoder."""
        if self.position_BN is None or self.mask_B1NN is None:
            return {"input_ids": self.ids_BN}
        return {"input_ids": self.ids_BN, "position_ids": self.position_BN, "attention_mask": self.mask_B1NN}


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix of two rows, in tokens."""
    count = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        count += 1
    return count


def forest(rows: Rows, longest: int, pairs: float) -> list[list[int]]:
    """Groups of rows that share a tree: runs of neighbours in lexicographic order, cut where the whole costs least.

    A tree of N nodes costs N tokens and N^2 pairs in attention, including pairs that are masked.

    Args:
        rows: token ids; none may be empty.
        longest: rows of more tokens than this stay alone (0: all do).
        pairs: pairs in attention that cost as much as one token.
    """

    def cost(nodes: int) -> float:
        return nodes + nodes**2 / pairs

    order = sorted(range(len(rows)), key=lambda row: (tuple(rows[row]), row))
    lengths = [len(rows[row]) for row in order]
    common = [0, *(shared(rows[a], rows[b]) for a, b in pairwise(order))]
    least, first = [0.0, *[math.inf] * len(order)], [0] * (len(order) + 1)  # of the rows before each place
    for start, length in enumerate(lengths):
        nodes = 0
        for place in range(start, len(order)):
            new = lengths[place] - (common[place] if nodes else 0)
            alone = common[place] < MIN_SHARED or max(length, lengths[place]) > longest
            # The cost is convex: a row that is dearer here than alone is so in every longer tree as well.
            if nodes and (alone or cost(nodes + new) - cost(nodes) >= cost(lengths[place])):
                break
            nodes += new
            if least[start] + cost(nodes) < least[place + 1]:
                least[place + 1], first[place + 1] = least[start] + cost(nodes), start
    trees, end = [], len(order)
    while end:
        trees.append(order[first[end] : end])
        end = first[end]
    return trees[::-1]


def tree_nodes(rows: Rows, tree: Sequence[int]) -> int:
    """Number of nodes of a tree of `forest`."""
    return sum(len(rows[row]) for row in tree) - sum(shared(rows[a], rows[b]) for a, b in pairwise(tree))


def pack(rows: Rows, trees: Sequence[Sequence[int]], pad_id: int, dtype: torch.dtype, device: torch.device) -> Packed:
    """Arranges trees side by side in one pass.

    Args:
        rows: token ids.
        trees: the rows of each tree, as `forest` returns them; rows in no tree are left out.
        pad_id: token id of padding.
        dtype: of the mask: the model's.
        device: where the tensors go.

    Returns:
        the pass; its `nodes` follow the order of the rows in `trees`.
    """
    built = [_Tree([rows[row] for row in tree]) for tree in trees]
    width = max(len(tree.ids) for tree in built)
    plain = all(len(tree) == 1 for tree in trees)
    ids_BN = torch.full((len(built), width), pad_id)
    position_BN = torch.zeros_like(ids_BN)
    # Padding attends to itself: a softmax over nothing would be NaN.
    visible_BNN = torch.eye(width, dtype=torch.bool).repeat(len(built), 1, 1)
    for b, tree in enumerate(built):
        count = len(tree.ids)
        ids_BN[b, :count] = torch.tensor(tree.ids)
        position_BN[b, :count] = torch.tensor(tree.depths)
        if not plain:
            visible_BNN[b, :count, :count] = tree.ancestors()
    nodes = tuple(torch.tensor(path, device=device) + b * width for b, tree in enumerate(built) for path in tree.paths)
    if plain:
        return Packed(ids_BN.to(device), None, None, nodes)
    mask_BNN = torch.zeros(visible_BNN.shape, dtype=dtype).masked_fill_(~visible_BNN, torch.finfo(dtype).min)
    return Packed(ids_BN.to(device), position_BN.to(device), mask_BNN[:, None].to(device), nodes)


class _Tree:
    """A prefix tree of rows: every node after its parent."""

    def __init__(self, rows: Rows):
        self.ids: list[int] = []
        self.depths: list[int] = []
        self.parents: list[int] = []
        self.paths: list[list[int]] = []  # for each row, its nodes
        children: dict[tuple[int, int], int] = {}
        for row in rows:
            node, path = -1, []
            for depth, token in enumerate(row):
                child = children.get((node, token))
                if child is None:
                    child = children[node, token] = len(self.ids)
                    self.ids.append(token)
                    self.depths.append(depth)
                    self.parents.append(node)
                node = child
                path.append(node)
            self.paths.append(path)

    def ancestors(self) -> Tensor:
        """`[N, N]`, true where the column's node is the row's node or one of its ancestors."""
        visible_NN = torch.eye(len(self.ids), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                visible_NN[node] |= visible_NN[parent]
        return visible_NN
