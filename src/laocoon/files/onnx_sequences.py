"""Sequences of tensors resolved while a graph is read: lists of names, of which no operator is left.

Scripts that append to a list, and splits whose parts are taken one by one, are exported so. A list whose length is not
known before the graph runs (a split into parts of one size) can be joined again or asked for its k-th part, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.onnx_node import Node

OPERATORS = ("SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceAt", "SequenceLength",
             "ConcatFromSequence", "SplitToSequence")
LARGEST = 10_000  # names in one list


@dataclass(frozen=True)
class Parts:
    """The value `whole`, split along an axis into parts of `size`; single ones lose the axis unless it is kept."""

    whole: str
    axis: int
    size: int
    kept: bool


@dataclass
class Sequences:
    """`constant` tells the value of a name that is known already."""

    constant: Callable[[str], Tensor | None]
    known: dict[str, tuple[str, ...] | Parts] = field(default_factory=dict)

    def resolved(self, node: Node) -> list[Node]:
        """What the node comes to: itself, or operators on tensors alone, or nothing but a list that is remembered."""
        if node.domain or node.op not in OPERATORS:
            if node.op == "Identity" and node.inputs[0] in self.known:
                self.known[node.outputs[0]] = self.known[node.inputs[0]]
                return []
            return [node]
        if not node.outputs or (node.op not in ("SequenceEmpty", "SequenceConstruct") and not node.inputs):
            raise BrokenFile(f"node {node.name!r} ({node.op}) lacks inputs or outputs.", "The file is malformed.")
        if node.op == "SplitToSequence":
            return self._split(node)
        if node.op == "SequenceAt":
            return self._part(node)
        if node.op == "ConcatFromSequence":
            return self._joined(node)
        if node.op == "SequenceLength":
            return [_made(node, "Constant", (), {"value": torch.tensor(len(self._names(node)))})]
        if node.op in ("SequenceConstruct", "SequenceEmpty"):
            names = node.inputs
        else:
            changed = list(self._names(node))
            if node.op == "SequenceInsert":
                if len(node.inputs) < 2:
                    raise BrokenFile(f"node {node.name!r} inserts nothing.", "The file is malformed.")
                changed.insert(self._position(node, 2, len(changed), len(changed)), node.inputs[1])
            else:
                del changed[self._position(node, 1, len(changed) - 1, len(changed))]
            names = tuple(changed)
        if len(names) > LARGEST:
            raise InputError(f"node {node.name!r} makes a sequence of {len(names)} tensors.",
                             f"At most {LARGEST} are read.")
        self.known[node.outputs[0]] = names
        return []

    def _names(self, node: Node) -> tuple[str, ...]:
        found = self.known.get(node.inputs[0])
        if isinstance(found, tuple):
            return found
        raise self._unknown(node)

    def _unknown(self, node: Node) -> InputError:
        return InputError(f"node {node.name!r} ({node.op}) reads a sequence whose length depends on data.",
                          "Export the model so that its lists have as many tensors as the code says.")

    def _position(self, node: Node, at: int, usual: int, length: int) -> int:
        if at >= len(node.inputs) or not node.inputs[at]:
            return usual
        value = self.constant(node.inputs[at])
        if value is None or value.numel() != 1:
            raise self._unknown(node)
        position = int(value)
        if not -length <= position <= usual:
            raise BrokenFile(f"node {node.name!r} asks for place {position} of a sequence of {length}.",
                             "The file is malformed.")
        return position

    def _split(self, node: Node) -> list[Node]:
        axis, (whole, *rest) = node.integer("axis"), node.inputs
        sizes = self.constant(rest[0]) if rest and rest[0] else torch.tensor(1)
        if sizes is None or sizes.dim() > 1 or sizes.numel() > LARGEST or (sizes.numel() and int(sizes.min()) < 1):
            raise self._unknown(node)
        kept = bool(rest and rest[0]) or bool(node.integer("keepdims", 1))
        if sizes.dim() == 0:
            self.known[node.outputs[0]] = Parts(whole, axis, int(sizes), kept)
            return []
        names = tuple(f"{node.outputs[0]}\0{i}" for i in range(sizes.numel()))
        self.known[node.outputs[0]] = names
        # As the operator was before its sizes became an input.
        return [Node("Split", "", node.name, 11, (whole,), names, {"axis": axis, "split": tuple(sizes.tolist())})]

    def _part(self, node: Node) -> list[Node]:
        found = self.known.get(node.inputs[0])
        if isinstance(found, tuple):
            position = self._position(node, 1, len(found) - 1, len(found))
            return [_made(node, "Identity", (found[position],))]
        value = self.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if found is None or value is None or value.numel() != 1 or int(value) < 0:
            raise self._unknown(node)
        start = int(value) * found.size
        cut = Node("Slice", "", node.name, 9, (found.whole,), node.outputs,
                   {"axes": (found.axis,), "starts": (start,), "ends": (start + found.size,)})
        if found.kept:
            return [cut]
        inner = f"{node.outputs[0]}\0cut"
        squeezed = Node("Squeeze", "", node.name, 11, (inner,), node.outputs, {"axes": (found.axis,)})
        return [Node(**{**vars(cut), "outputs": (inner,)}), squeezed]

    def _joined(self, node: Node) -> list[Node]:
        axis, stacked = node.integer("axis"), bool(node.integer("new_axis"))
        found = self.known.get(node.inputs[0])
        if isinstance(found, Parts):
            if stacked or axis != found.axis or not found.kept:
                raise self._unknown(node)
            return [_made(node, "Identity", (found.whole,))]
        names, more = self._names(node), []
        if not names:
            raise BrokenFile(f"node {node.name!r} joins no tensor at all.", "The file is malformed.")
        if stacked:
            wide = tuple(f"{node.outputs[0]}\0{i}" for i in range(len(names)))
            more = [Node("Unsqueeze", "", node.name, 11, (name,), (new,), {"axes": (axis,)})
                    for name, new in zip(names, wide, strict=True)]
            names = wide
        return [*more, _made(node, "Concat", names, {"axis": axis})]


def _made(node: Node, op: str, inputs: tuple[str, ...],
          attributes: Mapping[str, object] = MappingProxyType({})) -> Node:
    return Node(op, "", node.name, node.opset, inputs, node.outputs[:1], attributes)
