"""`torch.export` programs as operator graphs: their nodes are read, never called."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from laocoon.core.errors import BrokenFile
from laocoon.recipes.operator_graph import DEEPEST, Array, Graph, Node, Shape
from laocoon.recipes.operator_sink import Sink, Value


def from_export(program: ExportedProgram) -> Graph:
    """The program's graph; branches of `torch.cond` are laid flat."""
    reader, signature = _Reader(), program.graph_signature
    held: dict[str, Any] = {**dict(signature.inputs_to_parameters), **dict(signature.inputs_to_buffers),
                            **dict(signature.inputs_to_lifted_tensor_constants)}
    tensors = {**program.state_dict, **program.constants}
    inputs = []
    for node in program.graph_module.graph.nodes:
        if node.op == "placeholder":
            if node.name in held:
                reader.tensor(node.name, tensors.get(held[node.name]))
            else:
                inputs.append(node.name)
                reader.note_shape(node.name, node)
    outputs = reader.read(program.graph_module, {}, "", 0)
    mutated = len(signature.buffers_to_mutate)
    return reader.sink.graph("torch.export", tuple(inputs), tuple(o for o in outputs[mutated:] if o))


class _Reader:
    def __init__(self) -> None:
        self.sink = Sink()

    def tensor(self, name: str, value: object) -> None:
        if isinstance(value, Tensor):
            self.sink.constant(name, tuple(value.shape), _loader(value))
        else:
            self.sink.constant(name, None)

    def note_shape(self, name: str, node: fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            self.sink.shapes[name] = _shape(value)
        elif isinstance(value, list | tuple):
            for i, part in enumerate(value):
                if isinstance(part, Tensor):
                    self.sink.shapes[f"{name}[{i}]"] = _shape(part)

    def read(self, module: fx.GraphModule, given: dict[str, str], prefix: str, depth: int) -> list[str]:
        """Append the nodes of a graph module; returns the names of its outputs."""
        if depth > DEEPEST:
            raise BrokenFile(f"the sub-graphs are nested more than {DEEPEST} deep.", "The file is malformed.")
        names: dict[fx.Node, Any] = {}
        outputs: list[str] = []

        def known(argument: Any) -> Value:
            if isinstance(argument, fx.Node):
                return names.get(argument, "")  # type: ignore[no-any-return]
            if isinstance(argument, list | tuple):
                return [known(a) for a in argument]
            return argument if isinstance(argument, bool | int | float) else None

        for node in module.graph.nodes:
            here = prefix + node.name
            if node.op == "placeholder":
                names[node] = given.get(node.name, here)
            elif node.op == "get_attr":
                found = getattr(module, str(node.target), None)
                names[node] = found if isinstance(found, fx.GraphModule) else here
                if not isinstance(found, fx.GraphModule):
                    self.tensor(here, found)
            elif node.op == "output":
                results = known(node.args[0])
                outputs = [r for r in (results if isinstance(results, list) else [results]) if isinstance(r, str)]
            elif node.op == "call_function":
                names[node] = self._call(node, [known(a) for a in node.args], names, here, depth)
        return outputs

    def _call(self, node: fx.Node, arguments: list[Value], names: dict[fx.Node, Any], here: str, depth: int) -> Any:
        target = node.target
        if target is operator.getitem:
            source, index = arguments[0], node.args[1]
            return source[index] if isinstance(source, list) and isinstance(index, int) else source
        self.note_shape(here, node)
        if str(target) == "cond":
            return self._branches(node, names, here, depth)
        value = node.meta.get("val")
        arguments = [*arguments, *(names.get(v, "") for v in node.kwargs.values() if isinstance(v, fx.Node))]
        settings = {k: (float(v),) for k, v in node.kwargs.items() if isinstance(v, int | float)}
        plural = isinstance(value, list | tuple)
        outputs = tuple(f"{here}[{i}]" for i in range(len(value))) if plural else (here,)  # type: ignore[arg-type]
        self.sink.operator(str(target), arguments, here, outputs, settings)
        return list(outputs) if plural else here

    def _branches(self, node: fx.Node, names: dict[fx.Node, Any], here: str, depth: int) -> list[str]:
        condition, *bodies = (names.get(a, "") if isinstance(a, fx.Node) else "" for a in node.args[:3])
        operands = [names.get(a, "") for a in node.args[3]]  # type: ignore[union-attr,arg-type]
        ends = []
        for which, body in zip(("then", "else"), bodies, strict=True):
            if not isinstance(body, fx.GraphModule):
                raise BrokenFile(f"the branch of {here[:80]!r} is no graph.", "The file is malformed.")
            formal = [n.name for n in body.graph.nodes if n.op == "placeholder"]
            ends.append(self.read(body, dict(zip(formal, operands, strict=False)), f"{here}/{which}/", depth + 1))
        outputs = []
        for i, chosen in enumerate(zip(*ends, strict=False)):
            self.sink.append(Node("If", here, (str(condition), *chosen), (f"{here}[{i}]",)))
            outputs.append(f"{here}[{i}]")
        return outputs


def _shape(value: Tensor) -> Shape:
    return tuple(int(d) if isinstance(d, int) else None for d in value.shape)


def _loader(value: Tensor) -> Callable[[], Array | None]:
    def read() -> Array | None:
        if value.device.type == "meta" or value.is_complex():
            return None
        return np.asarray(value.detach().to(torch.float64).cpu().numpy())

    return read


