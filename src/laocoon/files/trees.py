"""Boosted trees as a torch module: all trees walk one floor down at a time, for the whole batch.

Trees of other libraries are read as plain numbers and evaluated here: no code of a stranger's, no native parser of a
stranger's file, and no library to install. The module answers questions; it has no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laocoon.core.errors import BrokenFile

MOST_TREES = 100_000
MOST_NODES = 20_000_000
MOST_CODES = 1_000_000  # places in the table of categories


@dataclass(frozen=True)
class Tree:
    """One tree, node 0 on top. A leaf has `left` −1 and its score in `value`."""

    column: Sequence[int]
    threshold: Sequence[float]
    left: Sequence[int]  # where the test holds
    right: Sequence[int]
    value: Sequence[float]
    group: int  # the class whose score it adds to
    codes: Mapping[int, frozenset[int]]  # for nodes that test a category: the codes that go left


class Trees(nn.Module):
    """Sum of the leaves that a row falls into, per class: [n, columns] to [n, groups].

    A test is x < threshold, or x ≤ threshold where `inclusive`; it is done in double precision.
    """

    column: Tensor
    threshold: Tensor
    child: Tensor
    value: Tensor
    root: Tensor
    group: Tensor
    slot: Tensor
    member: Tensor
    base: Tensor

    def __init__(self, trees: Sequence[Tree], groups: int, base: Sequence[float], *, inclusive: bool, name: str,
                 scale: float = 1.0) -> None:
        super().__init__()
        self.inclusive, self.groups, self.scale = inclusive, groups, scale
        _check(trees, groups, name)
        starts = [0]
        for tree in trees:
            starts.append(starts[-1] + len(tree.left))
        joined = lambda field: [v for t in trees for v in getattr(t, field)]  # noqa: E731
        offset = torch.repeat_interleave(torch.tensor(starts[:-1]), torch.tensor([len(t.left) for t in trees]))
        left, right = torch.tensor(joined("left")), torch.tensor(joined("right"))
        own = torch.arange(starts[-1])
        child = torch.stack([torch.where(left < 0, own, right + offset), torch.where(left < 0, own, left + offset)], 1)
        sets = {starts[i] + node: codes for i, t in enumerate(trees) for node, codes in t.codes.items()}
        width = max((max(codes, default=0) + 1 for codes in sets.values()), default=1)
        if width * len(sets) > MOST_CODES:
            raise BrokenFile(f"{name} tests {len(sets)} times for one of {width} categories.", "That is too many.")
        slot, member = torch.full((starts[-1],), -1), torch.zeros(max(1, len(sets)), width + 1, dtype=torch.bool)
        for place, (node, codes) in enumerate(sets.items()):
            slot[node] = place
            member[place, sorted(codes)] = True
        self.depth, self.categories = _depth(trees), len(sets)
        for key, value in (("column", torch.tensor(joined("column"))), ("child", child), ("slot", slot),
                           ("threshold", torch.tensor(joined("threshold"), dtype=torch.float64)),
                           ("value", torch.tensor(joined("value"), dtype=torch.float64)), ("member", member),
                           ("root", torch.tensor(starts[:-1])), ("group", torch.tensor([t.group for t in trees])),
                           ("base", torch.tensor(base, dtype=torch.float64))):
            self.register_buffer(key, value)
        if not bool(torch.isfinite(self.value).all() and torch.isfinite(self.base).all()):
            raise BrokenFile(f"{name} holds leaves that are not finite numbers.", "The file is damaged.")

    def forward(self, x: Tensor) -> Tensor:
        rows = x.detach().double()
        at = self.root.expand(len(rows), -1)
        for _ in range(self.depth):
            cell, threshold = rows.gather(1, self.column[at]), self.threshold[at]
            goes_left = cell <= threshold if self.inclusive else cell < threshold
            if self.categories:
                slot, last = self.slot[at], self.member.shape[1] - 1  # the last code is in no set
                code = torch.where((cell >= 0) & (cell < last), cell, float(last)).long()
                goes_left = torch.where(slot >= 0, self.member[slot.clamp_min(0), code], goes_left)
            at = self.child[at].gather(-1, goes_left.long().unsqueeze(-1)).squeeze(-1)
        found = torch.zeros(len(rows), self.groups, dtype=torch.float64, device=rows.device)
        found.index_add_(1, self.group, self.value[at])
        return ((found + self.base) * self.scale).float()


def _check(trees: Sequence[Tree], groups: int, name: str) -> None:
    """Every number is where it should be, and every walk ends: children come after their parents."""
    nodes = sum(len(t.left) for t in trees)
    if not 1 <= len(trees) <= MOST_TREES or nodes > MOST_NODES:
        raise BrokenFile(f"{name} has {len(trees)} trees of {nodes} nodes.",
                         f"Between 1 and {MOST_TREES} trees of {MOST_NODES} nodes in all are read.")
    for number, tree in enumerate(trees):
        count = len(tree.left)
        sizes = {len(getattr(tree, f)) for f in ("column", "threshold", "left", "right", "value")}
        if sizes != {count} or not count or not 0 <= tree.group < groups:
            raise BrokenFile(f"{name}: the lists of tree {number} do not fit together.", "The file is damaged.")
        for i in range(count):
            a, b = tree.left[i], tree.right[i]
            if a >= 0 and not (i < a < count and i < b < count):
                raise BrokenFile(f"{name}: node {i} of tree {number} points to {a} and {b} of {count} nodes.",
                                 "The file is damaged, or was meant to keep its reader busy.")
            if a >= 0 and tree.column[i] < 0:
                raise BrokenFile(f"{name}: node {i} of tree {number} tests column {tree.column[i]}.",
                                 "The file is damaged.")


def _depth(trees: Sequence[Tree]) -> int:
    deepest = 0
    for tree in trees:
        depth = [0] * len(tree.left)
        for i, a in enumerate(tree.left):
            if a >= 0:
                depth[a] = depth[tree.right[i]] = depth[i] + 1
        deepest = max(deepest, *depth)
    return deepest


def ordered(column: Sequence[int], threshold: Sequence[float], left: Sequence[int], right: Sequence[int],
            value: Sequence[float], group: int, codes: Mapping[int, frozenset[int]], name: str) -> Tree:
    """A tree whose nodes are put in the order of a walk from the top; those that no walk reaches are left out."""
    order, place = [0], {0: 0}
    for node in order:
        if node >= len(left) or node >= len(right):
            raise BrokenFile(f"{name}: a tree points to node {node} of {len(left)}.", "The file is damaged.")
        for child in (left[node], right[node]) if left[node] >= 0 else ():
            if child in place or not 0 <= child < len(left):
                raise BrokenFile(f"{name}: node {node} of a tree points to {child}.",
                                 "The file is damaged, or was meant to keep its reader busy.")
            place[child] = len(order)
            order.append(child)
    inner = [left[n] >= 0 for n in order]
    return Tree([column[n] if i else 0 for n, i in zip(order, inner, strict=True)],
                [threshold[n] if i else 0.0 for n, i in zip(order, inner, strict=True)],
                [place[left[n]] if i else -1 for n, i in zip(order, inner, strict=True)],
                [place[right[n]] if i else -1 for n, i in zip(order, inner, strict=True)],
                [0.0 if i else value[n] for n, i in zip(order, inner, strict=True)], group,
                {place[n]: c for n, c in codes.items() if n in place})
