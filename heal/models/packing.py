"""Packs rows of token ids into few forward passes, computing shared beginnings once.

Rows with a common beginning (one system prompt, one question, several answers) are merged into a prefix tree: a
token that several rows share occurs once, and a mask lets every token attend to its ancestors and
nothing else. Attention is causal, so hidden states and gradients are those of each row by itself.

Nodes stand in preorder, so that a node's descendants follow it without a gap and its `end`, the place after the last
of them, says all that the mask needs: place i sees place j where `j <= i < end[j]`.

Shape suffixes: B trees, N nodes of the largest tree, D hidden size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from heal.models.batching import halves

Rows = Sequence[Sequence[int]]

MIN_SHARED = 8  # tokens that a row must share with its neighbour to join the neighbour's tree


@dataclass(frozen=True)
class Packed:
    """One forward pass over several rows.

    Attributes:
        ids_BN: token ids, padded on the right.
        position_BN: depth of each node; None where every tree is a single row.
        end_BN: the place after each node's last descendant; None where every tree is a single row, which needs no mask
            beside causal attention.
        nodes: for each row, the places of its tokens in the flattened `[B * N]` hidden states.
    """

    ids_BN: Tensor
    position_BN: Tensor | None
    end_BN: Tensor | None
    nodes: tuple[Tensor, ...]

    def inputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Keyword arguments of a decoder that computes in `dtype`."""
        if self.position_BN is None or self.end_BN is None:
            return {"input_ids": self.ids_BN}
        mask_B1NN = tree_mask(self.end_BN, dtype)
        return {"input_ids": self.ids_BN, "position_ids": self.position_BN, "attention_mask": mask_B1NN}


def tree_mask(end_BN: Tensor, dtype: torch.dtype) -> Tensor:
    """`[B, 1, N, N]` on the device of `end_BN`: 0 where a node attends to another, the dtype's minimum elsewhere."""
    place_N = torch.arange(end_BN.shape[1], device=end_BN.device)
    seen_BNN = (place_N <= place_N[:, None]) & (place_N[:, None] < end_BN[:, None, :])
    mask_BNN = torch.zeros(seen_BNN.shape, dtype=dtype, device=end_BN.device)
    return mask_BNN.masked_fill_(~seen_BNN, torch.finfo(dtype).min)[:, None]


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix of two rows, in tokens."""
    count = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        count += 1
    return count


def forest(rows: Rows, longest: int, pairs: float, most: float = math.inf) -> list[list[int]]:
    """Groups of rows that share a tree: runs of neighbours in lexicographic order, cut where the whole costs least.

    A tree of N nodes costs N tokens and N^2 pairs in attention, including pairs that are masked.

    Args:
        rows: token ids; none may be empty.
        longest: rows of more tokens than this stay alone (0: all do).
        pairs: pairs in attention that cost as much as one token.
        most: nodes of a tree of several rows.
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
            dear = cost(nodes + new) - cost(nodes) >= cost(lengths[place])
            if nodes and (alone or dear or nodes + new > most):
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


def halves_of_trees(trees: Sequence[list[int]]) -> tuple[Sequence[list[int]], Sequence[list[int]]] | None:
    """Both halves of a pass, or of the rows of its only tree; None where it is a single row."""
    if len(trees) > 1 or len(trees[0]) == 1:
        return halves(trees)
    half = len(trees[0]) // 2
    return [trees[0][:half]], [trees[0][half:]]


def pack(rows: Rows, trees: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Packed:
    """Arranges trees side by side in one pass.

    Args:
        rows: token ids.
        trees: the rows of each tree, as `forest` returns them; rows in no tree are left out.
        pad_id: token id of padding.
        device: where the tensors go.

    Returns:
        the pass; its `nodes` follow the order of the rows in `trees`.
    """
    built = [_Tree([rows[row] for row in tree]) for tree in trees]
    width = max(len(tree.ids) for tree in built)
    ids_BN = torch.full((len(built), width), pad_id)
    position_BN = torch.zeros_like(ids_BN)
    # Padding attends to itself: a softmax over nothing would be NaN.
    end_BN = torch.arange(1, width + 1).repeat(len(built), 1)
    for b, tree in enumerate(built):
        count = len(tree.ids)
        ids_BN[b, :count] = torch.tensor(tree.ids)
        position_BN[b, :count] = torch.tensor(tree.depths)
        end_BN[b, :count] = torch.tensor(tree.ends)
    paths = [(path, b) for b, tree in enumerate(built) for path in tree.paths]
    places = torch.tensor([node + b * width for path, b in paths for node in path], device=device)
    nodes = places.split([len(path) for path, _ in paths])
    if all(len(tree) == 1 for tree in trees):
        return Packed(ids_BN.to(device), None, None, nodes)
    return Packed(ids_BN.to(device), position_BN.to(device), end_BN.to(device), nodes)


class _Tree:
    """A prefix tree of rows, its nodes in preorder.

    Attributes:
        ids: the nodes' tokens.
        depths: how many ancestors each has.
        ends: the place after the last descendant of each.
        paths: for each row, its nodes.
    """

    def __init__(self, rows: Rows):
        self.ids: list[int] = []
        self.depths: list[int] = []
        self.ends: list[int] = []
        self.paths: list[list[int]] = [[]] * len(rows)
        above: list[int] = []  # the nodes of the row before
        for row in sorted(range(len(rows)), key=lambda row: tuple(rows[row])):
            tokens = rows[row]
            kept = shared(tokens, [self.ids[node] for node in above])
            above = above[:kept]
            for depth in range(kept, len(tokens)):
                above.append(len(self.ids))
                self.ids.append(tokens[depth])
                self.depths.append(depth)
                self.ends.append(0)
            for node in above:
                self.ends[node] = len(self.ids)
            self.paths[row] = above
