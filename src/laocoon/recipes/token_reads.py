"""What a graph does with the numbers of its tokens, apart from looking them up.

A token's number is a name, not a quantity. Honest text networks move ids about, look them up in tables, and ask where
padding or an end is; what else is done with them is listed here. Nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from laocoon.recipes.dataflow import COMPARISONS, CUTS, EXTREMES, SUMS, Flow
from laocoon.recipes.operator_graph import Array, Constant, Node

# The numbers stay what they are, wherever they go.
MOVES = frozenset({"Cast", "CastLike", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Expand", "Slice",
                   "Flatten", "Tile", "Pad", "Concat", "Split", "Gather", "GatherND", "GatherElements", "ScatterND",
                   "ScatterElements", "Where", "If", "Trilu"})
CHANGES = frozenset({"Add", "Sub", "Mul", "Div", "Mod", "Abs", "Neg", "Clip", "Floor", "Ceil", "Round", "BitShift",
                     "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "Min", "Max"})
ALIKE = 0.99  # share of a table's rows that are one and the same: what it tells is which few tokens are others
LARGEST = 128_000_000  # numbers of a table that is looked at: the words of BERT's are 23 million


@dataclass(frozen=True)
class Lookup:
    """A table with a row for each token. `odd`: tokens whose row is not the one that nearly all have."""

    node: Node
    odd: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """A comparison of ids with numbers; None: with numbers that only running the graph would tell."""

    node: Node
    numbers: tuple[float, ...] | None


@dataclass(frozen=True)
class Calculation:
    """Ids in any other operator, or in one that meets what layers made of them."""

    node: Node
    changed: bool  # they had been calculated with before


Read = Lookup | Question | Calculation


def reads(flow: Flow, ids: str) -> Iterator[Read]:
    """Where the input called `ids` is read, in the order of the graph, as far as an output depends on it."""
    walk = _Walk(flow, ids)
    for node in flow.graph.nodes:
        if any(name in flow.after for name in node.outputs) and node.op not in CUTS:
            yield from walk.step(node)


class _Walk:
    """Values that are ids, and values with a place for each token of the vocabulary (one-hot, bags of words)."""

    def __init__(self, flow: Flow, ids: str) -> None:
        self.flow, self.ids = flow, {ids: False}  # were they calculated with?
        self.places: set[str] = set()

    def step(self, node: Node) -> Iterator[Read]:
        mine = [self.ids[name] for name in node.inputs if name in self.ids]
        spread = any(name in self.places for name in node.inputs)
        if not mine and not spread:
            return
        table = self._table(node)
        if table is not None:
            yield Lookup(node, self._odd(table))
        elif self._meets(node) or any(name in self.flow.graph.outputs for name in node.outputs):
            yield Calculation(node, any(mine))
        elif spread and node.op == "Gather" and node.inputs[0] in self.places:
            yield Question(node, self._numbers(node.inputs[1:]))
        elif (spread and node.op in MOVES | CHANGES | SUMS | EXTREMES) or self._spreads(node):
            self.places |= set(node.outputs)
        elif node.op in MOVES | CHANGES:
            self.ids.update(dict.fromkeys(node.outputs, any(mine) or node.op in CHANGES))
        elif node.op in COMPARISONS and not any(mine) and not spread:
            yield Question(node, self._numbers([n for n in node.inputs if n not in self.ids]))
        else:
            yield Calculation(node, any(mine))

    def _held(self, name: str) -> bool:
        """Does the value not depend on the ids?"""
        return bool(name) and (name not in self.flow.traces or self.flow.traces[name].depth < 0)

    def _table(self, node: Node) -> str | None:
        """What a node looks ids up in."""
        if node.op in ("Gather", "GatherElements") and set(node.inputs[1:]) & self.ids.keys():
            return node.inputs[0] if self._held(node.inputs[0]) else None
        if node.op in ("MatMul", "Gemm") and any(name in self.places for name in node.inputs):
            return next((n for n in node.inputs[:2] if self._held(n)), None)
        return None

    def _spreads(self, node: Node) -> bool:
        return (node.op == "OneHot" and node.inputs[0] in self.ids) or (
            node.op.startswith("Scatter") and self._held(node.inputs[0]) and node.inputs[1:2] != ()
            and node.inputs[1] in self.ids)

    def _meets(self, node: Node) -> bool:
        """Do ids meet what layers made of them, or choose between two values?"""
        chosen = node.op in ("Where", "If") and (node.inputs[0] in self.ids or node.inputs[0] in self.places)
        others = [n for n in node.inputs if n not in self.ids and n not in self.places]
        # What tells where ids are to go is made of questions about them, which are listed by themselves.
        apart = node.op in MOVES
        return chosen or (not apart and any(not self._held(n) for n in others if n))

    def _constant(self, name: str) -> Constant | None:
        return self.flow.graph.constants.get(self.flow.roots.get(name, ""))

    def _values(self, name: str) -> Array | None:
        constant = self._constant(name)
        return None if constant is None else constant.values

    def _odd(self, table: str) -> tuple[int, ...]:
        """Tokens whose row is not the usual one, which is searched among a few rows: nearly all are it, or none is."""
        constant = self._constant(table)
        if constant is None or constant.size is None or constant.size > LARGEST:
            return ()
        values = constant.read()
        if values is None or values.ndim == 0 or len(values) < 2 / (1 - ALIKE):
            return ()
        rows = values.reshape(len(values), -1)
        for usual in rows[:: max(1, len(rows) // 3)][:3]:
            others = np.flatnonzero((rows != usual).any(axis=1))
            if len(others) <= (1 - ALIKE) * len(rows):
                return tuple(map(int, others))
        return ()

    def _numbers(self, names: list[str] | tuple[str, ...]) -> tuple[float, ...] | None:
        arrays = [self._values(name) for name in names]
        if not arrays or any(a is None for a in arrays):
            return None
        return tuple(dict.fromkeys(float(v) for a in arrays if a is not None for v in a.reshape(-1)))
