"""Rows of token ids in few forward passes, with what rows share computed once.

Rows that begin alike (one system prompt, one question, several answers) are merged into a prefix tree: a
token that several rows have in common stands once, and a mask lets every token see its ancestors and
nothing else. Attention is causal, so no row can tell: the hidden states, and the gradients, are those of
each row alone. Shape suffixes: B trees, N nodes of the largest tree, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Rows = Sequence[Sequence[int]]

MIN_SHARED = 8  # tokens that a row must share with its neighbour to join its tree


@dataclass(frozen=True)
class Packed:
    """One forward pass over several rows.

    Attributes:
        ids_BN: token ids, padded on the right.
        position_BN: depth of each node; None where every tree is a single row.
        mask_B1NN: 0 where a node sees another, the dtype's minimum elsewhere; None where every tree is a
            single row: causal attention needs no mask then.
        nodes: for each row, where its tokens stand in the flattened `[B * N]` hidden states.
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
    """Number of tokens that two rows have in common at their beginning."""
    count = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        count += 1
    return count


def forest(rows: Rows, longest: int, pairs: float) -> list[list[int]]:
    """Which rows share a tree: neighbours in lexicographic order, as long as sharing pays.

    A tree of N nodes costs N tokens and N^2 pairs in attention, branches that do not see each other
    included; a row joins where that costs less than a pass of its own.

    Args:
        rows: token ids; none may be empty.
        longest: rows over this many tokens stay alone (0: all do).
        pairs: pairs in attention that cost as much as one token.
    """

    def cost(nodes: int) -> float:
        return nodes + nodes**2 / pairs

    order = sorted(range(len(rows)), key=lambda row: (tuple(rows[row]), row))
    trees: list[list[int]] = []
    nodes = 0
    for previous, row in zip(order[:1] + order[:-1], order, strict=True):
        common = shared(rows[previous], rows[row]) if trees else 0
        new = len(rows[row]) - common
        pays = common >= MIN_SHARED and cost(nodes + new) - cost(nodes) < cost(len(rows[row]))
        if pays and max(len(rows[row]), len(rows[previous])) <= longest:
            trees[-1].append(row)
            nodes += new
        else:
            trees.append([row])
            nodes = len(rows[row])
    return trees


def tree_nodes(rows: Rows, tree: Sequence[int]) -> int:
    """Number of nodes of a tree of `forest`."""
    return sum(len(rows[row]) for row in tree) - sum(shared(rows[a], rows[b]) for a, b in pairwise(tree))


def pack(rows: Rows, trees: Sequence[Sequence[int]], pad_id: int, dtype: torch.dtype, device: torch.device) -> Packed:
    """Lays trees side by side.

    Args:
        rows: token ids.
        trees: which rows stand in which tree, as `forest` gives them; rows that are in none are left out.
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
    sees_BNN = torch.eye(width, dtype=torch.bool).repeat(len(built), 1, 1)  # padding sees itself: no empty softmax
    for b, tree in enumerate(built):
        count = len(tree.ids)
        ids_BN[b, :count] = torch.tensor(tree.ids)
        position_BN[b, :count] = torch.tensor(tree.depths)
        if not plain:
            sees_BNN[b, :count, :count] = tree.ancestors()
    nodes = tuple(torch.tensor(path, device=device) + b * width for b, tree in enumerate(built) for path in tree.paths)
    if plain:
        return Packed(ids_BN.to(device), None, None, nodes)
    mask_BNN = torch.zeros(sees_BNN.shape, dtype=dtype).masked_fill_(~sees_BNN, torch.finfo(dtype).min)
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
                found = children.get((node, token))
                if found is None:
                    found = children[node, token] = len(self.ids)
                    self.ids.append(token)
                    self.depths.append(depth)
                    self.parents.append(node)
                node = found
                path.append(node)
            self.paths.append(path)

    def ancestors(self) -> Tensor:
        """`[N, N]`, true where the column is the row's node itself or one of its ancestors."""
        sees_NN = torch.eye(len(self.ids), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                sees_NN[node] |= sees_NN[parent]
        return sees_NN
