"""An operator graph as data: what a model computes, without the means to compute it.

Names of operators are those of ONNX, whatever the file was; sub-graphs (branches of an If, bodies of loops) are laid
flat into the graph around them, so that a walk over `nodes` sees every operator and every edge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from laocoon.core.errors import BrokenFile

Array = NDArray[np.float64]
Shape = tuple[int | None, ...]
MOST_NODES = 100_000
DEEPEST = 24  # nesting of sub-graphs and of calls that is followed
READ_UP_TO = 2_000_000  # elements of a constant whose values are looked at


def _nothing() -> Array | None:
    return None


@dataclass(frozen=True, eq=False)
class Constant:
    """A value that the file holds. `shape` is None where only running the file would tell."""

    shape: tuple[int, ...] | None
    read: Callable[[], Array | None] = field(default=_nothing, repr=False)

    @cached_property
    def values(self) -> Array | None:
        """The numbers, where they are at hand and few enough to look at."""
        return self.read() if self.size is None or self.size <= READ_UP_TO else None

    @property
    def size(self) -> int | None:
        return None if self.shape is None else prod(self.shape)

    @cached_property
    def uniform(self) -> bool:
        """One number repeated, as far as is known."""
        return self.size == 1 or (self.values is not None and bool((self.values == self.values.flat[:1]).all()))


@dataclass(frozen=True)
class Node:
    """One operator. An absent input is an empty name. An If has one node per output: condition, then, else."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # numeric attributes


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order in which they can be computed."""

    origin: str  # "onnx", "torchscript", "torch.export" …
    nodes: tuple[Node, ...]
    constants: Mapping[str, Constant]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, Shape] = field(default_factory=dict)  # of any value, as far as known

    def shape(self, name: str) -> Shape | None:
        """The shape of a value or a constant; None where unknown."""
        constant = self.constants.get(name)
        return constant.shape if constant is not None else self.shapes.get(name)


def arranged(graph: Graph) -> Graph:
    """The same graph with its nodes in topological order, each value written once."""
    if len(graph.nodes) > MOST_NODES:
        raise BrokenFile(f"the graph has {len(graph.nodes)} nodes.", f"At most {MOST_NODES} are examined.")
    writer: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        for name in node.outputs:
            if name and writer.setdefault(name, i) != i:
                raise BrokenFile(f"two nodes of the graph write {name[:80]!r}.", "The file is malformed.")
    waits = [len({writer[n] for n in node.inputs if n in writer}) for node in graph.nodes]
    readers: dict[int, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        for source in {writer[n] for n in node.inputs if n in writer}:
            readers.setdefault(source, []).append(i)
    ready = deque(i for i, n in enumerate(waits) if n == 0)
    order: list[int] = []
    while ready:
        i = ready.popleft()
        order.append(i)
        for reader in readers.get(i, ()):
            waits[reader] -= 1
            if waits[reader] == 0:
                ready.append(reader)
    if len(order) < len(graph.nodes):
        raise BrokenFile("the graph has a circle.", "The file is malformed.")
    return replace(graph, nodes=tuple(graph.nodes[i] for i in order))

