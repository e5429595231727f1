"""Where the readers of PyTorch's own formats put operators: names made canonical, numbers made constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from laocoon.core.errors import BrokenFile
from laocoon.recipes.aten_names import VALUES, canonical, plain_name
from laocoon.recipes.operator_graph import MOST_NODES, Array, Constant, Graph, Node, Shape, arranged

Value = str | float | int | bool | None | list["Value"] | tuple["Value", ...]  # a name, a number or several


class Sink:
    """Collects nodes and constants. Names are strings; whatever else an operator is given is a number."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Constant] = {}
        self.shapes: dict[str, Shape] = {}

    def constant(self, name: str, shape: tuple[int, ...] | None, read: Callable[[], Array | None] | None = None) -> str:
        self.constants[name] = Constant(shape, read) if read is not None else Constant(shape)
        return name

    def number(self, value: float) -> str:
        name = f"number {value!r}"
        if name not in self.constants:
            array = np.asarray(float(value))
            self.constants[name] = Constant((), lambda: array)
        return name

    def operator(self, target: str, arguments: Sequence[Value], name: str, outputs: tuple[str, ...],
                 settings: Mapping[str, tuple[float, ...]] | None = None) -> None:
        """Append one operator of ATen."""
        op, plain = canonical(target), plain_name(target)
        values = [self._names(a) for a in arguments[: VALUES.get(op, len(arguments))]]
        inputs = [n for some in values for n in some]
        found = dict(settings or {})
        if op == "Gemm" and plain == "linear":
            found["transB"] = (1.0,)
        if op == "Addmm":  # bias, a, b
            op, inputs = "Gemm", [*inputs[1:], *inputs[:1]]
        elif plain == "baddbmm":
            inputs = inputs[1:]
        elif plain == "square":
            inputs = inputs * 2
        elif plain == "masked_fill":  # data, mask, value
            inputs = [inputs[1], inputs[2], inputs[0]] if len(inputs) == 3 else inputs
        elif plain in ("max", "min") and len(arguments) > 1 and isinstance(arguments[1], str):
            op, inputs = plain.capitalize(), [*inputs, arguments[1]]
        elif plain in ("relu6", "hardtanh") or (op == "Clip" and len(values) > 2 and values[2]):
            found["max"] = (1.0,)
        if op.startswith(("Reduce", "Adaptive")) and _some_axes(op, arguments):
            found["some"] = (1.0,)
        if op == "EqualAll":
            self.append(Node("Equal", f"{name} compared", tuple(inputs), (f"{outputs[0]} compared",)))
            op, inputs = "ReduceMin", [f"{outputs[0]} compared"]
        if op == "Correlate":
            self.append(Node("Mul", f"{name} product", tuple(inputs), (f"{outputs[0]} product",)))
            op, inputs = "ReduceSum", [f"{outputs[0]} product"]
        self.append(Node(op, name, tuple(inputs), outputs, found))

    def append(self, node: Node) -> None:
        if len(self.nodes) >= MOST_NODES:
            raise BrokenFile(f"the graph has more than {MOST_NODES} nodes.", "Such graphs are not examined.")
        self.nodes.append(node)

    def _names(self, value: Value) -> list[str]:
        if isinstance(value, str):
            return [value]
        if isinstance(value, bool | int | float):
            return [self.number(float(value))]
        if isinstance(value, list | tuple):
            return [n for v in value if isinstance(v, str) for n in self._names(v)]
        return []

    def graph(self, origin: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Graph:
        return arranged(Graph(origin, tuple(self.nodes), self.constants, inputs, outputs, self.shapes))


def _some_axes(op: str, arguments: Sequence[Value]) -> bool:
    """Does the reduction keep places apart? Only asked where no shape is known: images are taken to be [n, c, h, w]."""
    axes = arguments[1] if len(arguments) > 1 else None
    listed = [axes] if isinstance(axes, int) and not isinstance(axes, bool) else axes
    if not isinstance(listed, list | tuple):
        return False
    numbers = [a for a in listed if isinstance(a, int | float)]
    if op.startswith("Adaptive"):
        return any(a != 1 for a in numbers)
    return len(numbers) == 1 if op.startswith("Reduce") else False
