"""ONNX graphs as operator graphs. Nothing is run; shapes come from ONNX's own inference on a copy without weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from laocoon.core.errors import BrokenFile
from laocoon.recipes.graphs_onnx_small import with_small_constants
from laocoon.recipes.operator_graph import DEEPEST, MOST_NODES, Array, Constant, Graph, Node, Shape, arranged

_LIGHT = 4096  # elements of a constant that shape inference may want to read


def from_onnx(model: ModelProto, origin: str = "onnx") -> Graph:
    """The main graph of a model whose local functions are inlined."""
    reader = _Reader()
    graph = model.graph
    held = {i.name for i in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    reader.read(graph, {}, "", 0)
    inputs = tuple(i.name for i in graph.input if i.name not in held)
    return arranged(Graph(origin, tuple(reader.nodes), reader.constants, inputs, tuple(o.name for o in graph.output),
                          _shapes(model)))


class _Reader:
    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Constant] = {}

    def read(self, graph: GraphProto, scope: dict[str, str], prefix: str, depth: int) -> dict[str, str]:
        """Append the nodes of a graph; returns the scope after it. `scope` maps the file's names to unique ones."""
        if depth > DEEPEST:
            raise BrokenFile(f"the sub-graphs are nested more than {DEEPEST} deep.", "The file is malformed.")
        scope = dict(scope)
        for tensor in graph.initializer:
            self._constant(tensor.name, tensor, scope, prefix)
        for sparse in graph.sparse_initializer:
            self.constants[prefix + sparse.values.name] = Constant(tuple(sparse.dims))
            scope[sparse.values.name] = prefix + sparse.values.name
        held = {i.name for i in graph.initializer}
        for number, node in enumerate(graph.node):
            # Outputs get their names in advance: the order of nodes in a file need not be that of computation.
            scope.update({o: prefix + o for o in node.output if o})
            if twice := held.intersection(node.output):
                raise BrokenFile(f"{min(twice)[:80]!r} is the name of a constant and of what a node writes.",
                                 "The file is malformed: export it again, after renaming that buffer.")
            if len(self.nodes) + number > MOST_NODES:
                raise BrokenFile(f"the graph has more than {MOST_NODES} nodes.", "Such graphs are not examined.")
        for number, node in enumerate(graph.node):
            self._node(node, scope, prefix, number, depth)
        return scope

    def _constant(self, name: str, tensor: TensorProto, scope: dict[str, str], prefix: str) -> None:
        scope[name] = prefix + name
        self.constants[prefix + name] = Constant(tuple(int(d) for d in tensor.dims), _loader(tensor))

    def _node(self, node: NodeProto, scope: dict[str, str], prefix: str, number: int, depth: int) -> None:
        if node.op_type == "Constant" and node.output:
            self._literal(node, scope, prefix)
            return
        inputs = tuple(scope.get(n, n) for n in node.input)
        outputs = tuple(scope[n] if n else "" for n in node.output)
        name = prefix + (node.name or f"{node.op_type}_{number}")
        bodies = [(a.name, a.g) for a in node.attribute if a.type == AttributeProto.GRAPH]
        if not bodies:
            self.nodes.append(Node(node.op_type, name, inputs, outputs, _settings(node)))
            return
        if node.op_type == "If":
            ends = []
            for branch, body in sorted(bodies, reverse=True):  # then_branch, else_branch
                inside = self.read(body, scope, f"{name}/{branch}/", depth + 1)
                ends.append([inside.get(o.name, o.name) for o in body.output])
            for i, output in enumerate(outputs):
                if output:
                    self.nodes.append(Node("If", name, (*inputs[:1], *(e[i] for e in ends if i < len(e))), (output,)))
            return
        # A loop: its body once, fed with what the loop starts from. Iteration number and condition are constants.
        _, body = bodies[0]
        given = inputs[2:] if node.op_type == "Loop" else inputs
        formal = [i.name for i in body.input][2 if node.op_type == "Loop" else 0:]
        within = dict(scope)
        for i in body.input:
            within[i.name] = f"{name}/body/{i.name}"
            self.constants.setdefault(within[i.name], Constant(None))
        for own, outer in zip(formal, given, strict=False):
            del self.constants[within[own]]
            self.nodes.append(Node("Identity", f"{name}/body/{own}", (outer,), (within[own],)))
        inside = self.read(body, within, f"{name}/body/", depth + 1)
        ends = [[inside.get(o.name, o.name) for o in body.output]]
        skip = 1 if node.op_type == "Loop" else 0
        for i, output in enumerate(outputs):
            made = ends[0][skip + i: skip + i + 1]
            if output:
                self.nodes.append(Node(node.op_type, name, (*made, *given[i: i + 1]), (output,)))

    def _literal(self, node: NodeProto, scope: dict[str, str], prefix: str) -> None:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                self._constant(node.output[0], attribute.t, scope, prefix)
                return
            listed = {AttributeProto.FLOAT: [attribute.f], AttributeProto.INT: [attribute.i],
                      AttributeProto.FLOATS: list(attribute.floats), AttributeProto.INTS: list(attribute.ints)}
            if attribute.type in listed:
                values = np.asarray(listed[attribute.type], dtype=np.float64)
                shape = () if attribute.type in (AttributeProto.FLOAT, AttributeProto.INT) else values.shape
                self.constants[prefix + node.output[0]] = Constant(shape, _given(values.reshape(shape)))
                return
        self.constants[prefix + node.output[0]] = Constant(None)


def _given(values: Array) -> Callable[[], Array | None]:
    return lambda: values


def _loader(tensor: TensorProto) -> Callable[[], Array | None]:
    def read() -> Array | None:
        if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type == TensorProto.STRING:
            return None
        try:
            return np.asarray(numpy_helper.to_array(tensor), dtype=np.float64)
        except (ValueError, TypeError, OverflowError):  # the files floor says what is wrong with it
            return None

    return read


def _settings(node: NodeProto) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for a in node.attribute:
        if a.type == AttributeProto.INT:
            found[a.name] = (float(a.i),)
        elif a.type == AttributeProto.FLOAT:
            found[a.name] = (float(a.f),)
        elif a.type == AttributeProto.INTS and len(a.ints) <= 64:
            found[a.name] = tuple(float(i) for i in a.ints)
    return found


def _shapes(model: ModelProto) -> dict[str, Shape]:
    """Shapes of values, for one sample where the file leaves the batch size open."""
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = model.graph
    light.graph.name = graph.name
    light.graph.node.extend(graph.node)
    light.graph.output.extend(graph.output)
    light.graph.value_info.extend(graph.value_info)
    known = {i.name for i in graph.initializer}
    for given in graph.input:
        if given.name in known:
            continue
        copy = light.graph.input.add()
        copy.CopyFrom(given)
        axes = copy.type.tensor_type.shape.dim
        if len(axes) and not axes[0].dim_value:
            axes[0].dim_value = 1
    for tensor in graph.initializer:
        if 0 <= int(np.prod([float(d) for d in tensor.dims])) <= _LIGHT:
            light.graph.initializer.append(tensor)
        else:
            dims = list(tensor.dims)
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, dims))
    for output in light.graph.output:  # what the file says of its outputs may not agree with a batch of one
        output.type.tensor_type.ClearField("shape")
    del light.graph.value_info[:]
    try:
        light = onnx.shape_inference.infer_shapes(with_small_constants(light), strict_mode=False, data_prop=True)
    except (RuntimeError, ValueError, TypeError, onnx.shape_inference.InferenceError):
        light.graph.value_info.extend(graph.value_info)
    found: dict[str, Shape] = {}
    for info in (*light.graph.input, *light.graph.value_info, *light.graph.output):
        tensor_type = info.type.tensor_type
        if tensor_type.HasField("shape"):
            found[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor_type.shape.dim)
    return found


