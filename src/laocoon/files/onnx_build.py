"""Build a GraphModule from the parsed graph: fold constants, choose layers, name them, resolve every step."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from onnx import GraphProto, TensorProto
from torch import Tensor, nn

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files import onnx_quantised, onnx_shapes, onnx_signal
from laocoon.files.onnx_graph import Conditional, GraphModule, Step, to_device_of
from laocoon.files.onnx_layers import Activation, Operator, activation_for, layer_for
from laocoon.files.onnx_node import Node, decode, tensor_of
from laocoon.files.onnx_operators import OPERATORS, SCALARS_ONLY, STEERING, VIEWS, Function
from laocoon.files.onnx_sequences import Sequences

assert onnx_shapes.OPERATORS is onnx_signal.OPERATORS is onnx_quantised.OPERATORS  # their imports fill the table

REFUSED = {
    "Loop": "a loop whose length depends on data", "Scan": "a loop over a sequence",
    "NonMaxSuppression": "the post-processing of a detector", "StringNormalizer": "text processing",
    "TfIdfVectorizer": "text processing", "LSTM": "a recurrent layer", "GRU": "a recurrent layer",
    "RNN": "a recurrent layer", "ImageDecoder": "decoding of files", "SequenceMap": "a loop over a sequence",
}
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_DATA_SHAPED = frozenset({"NonZero", "Compress", "Unique"})  # the shape of the output depends on values
_NOT_TRAINED = frozenset({
    "QuantizeLinear", "DequantizeLinear", "BatchNormalization", "Resize", "Upsample", "Clip", "Pad", "Where", "Min",
    "Max", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "OneHot", "DynamicQuantizeLinear",
})
_KNOWN_DOMAINS = frozenset({"", "com.microsoft"})
_RESERVED = frozenset(dir(nn.Module())) | {
    "base",
    "origins",
    "seen",
    "steps",
    "full",
    "lean",
    "kept",
    "cacheable",
    "constants",
    "function",
    "op",
    "node",
    "input_slots",
    "output_slots",
    "output_names",
}


@dataclass(frozen=True)
class Constant:
    """A value known when the graph is read; `origin` is the initialiser that it comes from, if a single one."""

    value: Tensor
    origin: str = ""
    kind: int = TensorProto.FLOAT


def _part(text: str) -> str:
    clean = re.sub(r"\W", "_", text, flags=re.ASCII)[:80] or "node"
    return f"{clean}_" if clean in _RESERVED else clean


class Builder:
    """Reads one graph. Sub-graphs of `If` are read by builders of their own that inherit the constants."""

    def __init__(
        self, graph: GraphProto, opset: int, inherited: Mapping[str, Constant], inputs: tuple[str, ...]
    ) -> None:
        self.graph, self.opset = graph, opset
        self.constants: dict[str, Constant] = dict(inherited)
        self.inputs = inputs
        self.module = GraphModule()
        self.slots: dict[str, int] = {}
        self.host: set[str] = set()
        self.steps: list[Step] = []
        self.parameters: dict[str, nn.Parameter] = {}
        self.moved: dict[str, int] = {}
        self.taken: set[str] = set()  # paths of layers
        self.scopes: set[str] = set()  # paths that hold layers
        self.shared: Counter[str] = Counter()  # nodes in each scope of the file's own names
        self.nodes: list[Node] = []
        self.ranks: dict[str, int] = {i.name: len(i.type.tensor_type.shape.dim) for i in graph.input}
        self.prefixes: set[str] = set()
        self.scope: list[str] = []  # of the layer placed last

    def build(self) -> GraphModule:
        for proto in self.graph.initializer:
            self.constants[proto.name] = Constant(tensor_of(proto), proto.name, proto.data_type)
        if self.graph.sparse_initializer:
            raise InputError("the ONNX graph has sparse initialisers.", "Export the model with dense weights.")
        for name in self.inputs:
            self.constants.pop(name, None)
            self._slot(name)
        self._check_names()
        for node in self._fused(decode(p, self.opset, i) for i, p in enumerate(self.graph.node)):
            self.nodes.append(node)
        for constant in self.constants.values():
            parts = constant.origin.split(".")[:-1]
            self.prefixes.update(".".join(parts[:i]) for i in range(1, len(parts)))
        for node in self.nodes:
            parts = scope_of(node.name)[:-1]
            self.prefixes.update(".".join(parts[:i]) for i in range(1, len(parts)))
            self.shared[".".join(parts)] += 1
        for node in self.nodes:
            self._step(node)
        outputs = [o.name for o in self.graph.output]
        self.module.input_slots = tuple(self.slots[name] for name in self.inputs)
        self.module.output_slots = tuple(self._read(name) for name in outputs)
        self.module.output_names = tuple(outputs)
        self.module.finish(self.steps)
        return self.module

    # ------------------------------------------------------------ reading
    def _check_names(self) -> None:
        known = {*self.constants, *self.inputs, ""}
        for proto in self.graph.node:
            for name in proto.input:
                if name not in known:
                    raise BrokenFile(
                        f"node {proto.name or proto.op_type!r} reads {name!r}, which nothing before it writes.",
                        "The graph is malformed or not sorted.",
                    )
            known.update(proto.output)

    def _fused(self, nodes: Iterable[Node]) -> list[Node]:
        """Fold constant nodes; join MatMul with the Add of its bias, so that it becomes one linear layer."""
        live = []
        sequences = Sequences(lambda name: self.constants[name].value if name in self.constants else None)
        for node in (plain for each in nodes for plain in sequences.resolved(each)):
            self._check_supported(node)
            if not self._folded(node):
                live.append(node)
        readers: dict[str, int] = {}
        for node in live:
            for name in self._reads(node):
                readers[name] = readers.get(name, 0) + 1
        for output in self.graph.output:
            readers[output.name] = readers.get(output.name, 0) + 1
        products = {n.outputs[0]: n for n in live if n.op == "MatMul" and n.inputs[1] in self.constants
                    and self.constants[n.inputs[1]].value.dim() == 2 and readers.get(n.outputs[0]) == 1}
        gone: set[str] = set()
        joined = []
        for node in live:
            if node.op == "Add" and not node.domain:
                for here, other in (node.inputs, tuple(reversed(node.inputs))):
                    product = products.get(here)
                    bias = self.constants.get(other)
                    if product and bias and bias.value.shape == self.constants[product.inputs[1]].value.shape[1:]:
                        gone.add(product.outputs[0])
                        node = Node("MatMul", "", product.name, node.opset, (*product.inputs, other), node.outputs)
                        break
            joined.append(node)
        return [n for n in joined if not (n.op == "MatMul" and n.outputs[0] in gone)]

    def _reads(self, node: Node) -> list[str]:
        names = [n for n in node.inputs if n]
        for value in node.attributes.values():
            if isinstance(value, GraphProto):
                names.extend(captured(value))
        return names

    def _check_supported(self, node: Node) -> None:
        if node.op in REFUSED:
            raise InputError(f"node {node.name!r} is the operator {node.op}: {REFUSED[node.op]}.",
                             "Only classifiers without it can be examined; export the network alone.")
        if node.op in ("If", "Constant", *_RANDOM):
            return
        if node.domain not in _KNOWN_DOMAINS or node.op not in OPERATORS:
            full = f"{node.domain}.{node.op}" if node.domain else node.op
            raise InputError(f"node {node.name!r} uses the operator {full}, which is not supported.",
                             "Export the model with standard ONNX operators.")
        if node.op in _DATA_SHAPED:
            self.module.cacheable = False

    def _folded(self, node: Node) -> bool:
        if node.op == "Constant":
            for name, value in node.attributes.items():
                tensor = value if isinstance(value, Tensor) else None
                if name in ("value_float", "value_floats"):
                    tensor = torch.tensor(value, dtype=torch.float32)
                elif name in ("value_int", "value_ints"):
                    tensor = torch.tensor(value, dtype=torch.int64)
                if tensor is None:
                    raise InputError(f"node {node.name!r} is a constant of kind {name}.", "Only tensors are supported.")
                self.constants[node.outputs[0]] = Constant(tensor)
            return True
        first = self.constants.get(node.inputs[0]) if node.inputs else None
        if node.op == "CastLike" and first is not None and first.value.is_floating_point():
            self.constants[node.outputs[0]] = first  # all floats are float32 here
            return True
        if node.op in _RANDOM or node.op == "If" or any(n and n not in self.constants for n in node.inputs):
            return False
        if not any(node.inputs):
            return False
        values = [self.constants[n].value if n else None for n in node.inputs]
        result = self._function(node)(*values)
        origins = {self.constants[n].origin for n in node.inputs[:1] if n} if node.op in (
            "Identity", "Transpose", "DequantizeLinear", "Cast", "Reshape", "Squeeze", "Unsqueeze") else set()
        results = result if isinstance(result, tuple) else (result,)
        for name, value in zip(node.outputs, results, strict=False):
            kind = self.constants[node.inputs[0]].kind if node.op == "Identity" and node.inputs[0] else 0
            self.constants[name] = Constant(value.contiguous(), origins.pop() if origins else "", kind)
        return True

    def _function(self, node: Node) -> Function:
        if node.op.startswith(("Q", "DequantizeLinear")):
            node = Node(**{**vars(node), "kind": self._quantised_kind(node)})
        return OPERATORS[node.op](node)

    def _quantised_kind(self, node: Node) -> int:
        """Element type that a quantising node writes: that of its output's zero point."""
        if node.integer("output_dtype"):
            return node.integer("output_dtype")
        position = {"QuantizeLinear": 2, "QLinearConv": 7, "QLinearMatMul": 7, "QLinearAdd": 7, "QLinearMul": 7,
                    "QGemm": 8, "QLinearConcat": 1}.get(node.op, 4)
        name = node.inputs[position] if position < len(node.inputs) else ""
        return self.constants[name].kind if name in self.constants else TensorProto.UINT8

    # ------------------------------------------------------------ slots
    def _slot(self, name: str) -> int:
        if name not in self.slots:
            self.slots[name] = len(self.module.base)
            self.module.base.append(None)
        return self.slots[name]

    def _fixed(self, value: Any) -> int:
        self.module.base.append(value)
        return len(self.module.base) - 1

    def _read(self, name: str) -> int:
        if name in self.constants:
            return self._fixed(self.constants[name].value)
        if name not in self.slots:
            raise BrokenFile(f"nothing in the graph writes {name!r}.", "The file is malformed.")
        return self.slots[name]

    def _steering(self, node: Node, position: int, *, host: bool) -> Any:
        """The Python value of a constant input that only steers its operator, or None to keep it a tensor."""
        if position not in STEERING.get(node.op, ()):
            return None
        value = self.constants[node.inputs[position]].value
        if node.op in SCALARS_ONLY:
            most = 0 if host or node.op == "Gather" else 1
            return value.item() if value.numel() == 1 and value.dim() <= most else None
        return value.reshape(-1).tolist() if value.numel() <= 4096 else None

    # ------------------------------------------------------------ steps
    def _step(self, node: Node) -> None:
        if node.op == "If":
            self._conditional(node)
            return
        if node.op in _RANDOM:
            raise InputError(f"node {node.name!r} is the operator {node.op}: the model gives random answers.",
                             "Export the model in evaluation mode.")
        dynamic = [n for n in node.inputs if n and n not in self.constants]
        host = node.op in ("Shape", "Size") or all(n in self.host for n in dynamic)
        if any(n not in self.host and i in STEERING.get(node.op, ()) and node.op not in SCALARS_ONLY
               for i, n in enumerate(node.inputs) if n and n not in self.constants) and not host:
            self.module.cacheable = False  # a shape that depends on data
        function = self._function(node)
        for name in node.outputs:
            self.ranks[name] = self._rank(node)
        inputs: list[int] = []
        held: list[tuple[int, Constant]] = []
        for position, name in enumerate(node.inputs):
            if not name:
                inputs.append(self._fixed(None))
            elif name in self.constants:
                value = self._steering(node, position, host=host)
                if value is not None:
                    inputs.append(self._fixed(value))
                elif host:
                    inputs.append(self._fixed(self.constants[name].value))
                else:
                    held.append((position, self.constants[name]))
            elif name in self.host and not host and position not in STEERING.get(node.op, ()):
                inputs.append(self._moved(name))
            else:
                inputs.append(self.slots[name])
        single = len([o for o in node.outputs if o]) == 1 and node.op not in ("Split", "TopK", "DynamicQuantizeLinear")
        outputs = tuple(self._slot(o or f"\0unused {node.name} {i}") for i, o in enumerate(node.outputs))
        if host:
            self.host.update(o for o in node.outputs if o)
            self.steps.append(Step(tuple(inputs), outputs, single, True, function, op=node.op))
        elif not held and node.op in VIEWS:
            self.steps.append(Step(tuple(inputs), outputs, single, False, function, op=node.op))
        else:
            self._layer(node, function, inputs, outputs, held, single)

    def _rank(self, node: Node) -> int:
        """Number of axes of a node's first output, as far as simple rules tell; 0: not known."""
        if node.op in ("Conv", "ConvTranspose") and node.inputs[1] in self.constants:
            return self.constants[node.inputs[1]].value.dim()
        if node.op in ("Gemm", "Flatten"):
            return 2
        if node.op in VIEWS and node.op not in ("Identity", "Cast", "Transpose", "Slice", "Split", "Dropout"):
            return 0
        if node.op.startswith("Reduce") or node.op in ("MatMul", "Einsum", "Shape", "OneHot", "Where", "If", "ArgMax"):
            return 0
        return max((self.ranks.get(name, 0) for name in node.inputs), default=0)

    def _layer(self, node: Node, function: Function, inputs: list[int], outputs: tuple[int, ...],
               held: list[tuple[int, Constant]], single: bool) -> None:
        layer: nn.Module | None = None
        constants = dict(held)
        rank = self.ranks.get(node.inputs[0], 0)
        if 0 not in constants and len(held) == len([n for n in node.inputs[1:] if n]):
            if not held and len(node.inputs) == 1:
                layer = activation_for(node, rank) or Activation(node.op, function)
            elif held:
                given = [constants[i].value if i in constants else None for i in range(1, len(node.inputs))]
                layer = layer_for(node, given, rank)
        origin = next((c.origin for _, c in held if c.origin and c.value.is_floating_point()), "")
        path = self._path(node, origin)
        if layer is not None:
            if held:
                inputs = inputs[:1]
            for position, constant in held:
                attribute = ("weight", "bias", "running_mean", "running_var")[position - 1]
                if constant.origin:
                    self.module.origins[f"{path}.{attribute}"] = constant.origin
        else:
            if node.op == "MatMul" and len(node.inputs) == 3:
                raise BrokenFile(f"node {node.name!r} has a bias of the wrong shape.", "The file is malformed.")
            layer = Operator(node.op, function)
            for position, constant in held:
                self._hold(layer, node, position, constant, path)
        owner, key = self._place(path, layer)
        self.steps.append(Step(tuple(inputs), outputs, single, False, None, owner, key, path, node.op))

    def _hold(self, layer: Operator, node: Node, position: int, constant: Constant, path: str) -> None:
        name = _part(constant.origin.split(".")[-1]) if constant.origin else f"constant_{position}"
        if name in layer._parameters or name in layer._buffers or hasattr(layer, name):
            name = f"{name}_{position}"
        trainable = bool(constant.origin) and constant.value.is_floating_point() and constant.value.numel() > 1 \
            and node.op not in _NOT_TRAINED and not node.op.startswith("QLinear")
        layer.hold(position, name, constant.value, trainable=trainable)
        if trainable:
            shared = self.parameters.setdefault(constant.origin, layer._parameters[name])  # type: ignore[arg-type]
            if shared.shape == constant.value.shape:
                layer._parameters[name] = shared
        if constant.origin:
            self.module.origins[f"{path}.{name}"] = constant.origin

    def _path(self, node: Node, origin: str) -> str:
        """Where a layer goes: under the name of its weight where that names a module, else of its node."""
        parts = [_part(p) for p in origin.split(".")[:-1]] if "." in origin else []
        if not parts or len(parts) > 24 or ".".join(origin.split(".")[:-1]) in self.prefixes:
            parts = self._scope(node)
        self.scope = parts[:-1]
        path = ".".join(parts)
        while (above := self._above(path)) is not None:  # a layer has no layers inside: stand beside it
            path = f"{above}_{path[len(above) + 1:]}"
        stem, number = path, 1
        while path in self.taken or path in self.scopes:
            number += 1
            path = f"{stem}_{number}"
        self.taken.add(path)
        pieces = path.split(".")
        self.scopes.update(".".join(pieces[:i]) for i in range(1, len(pieces)))
        return path

    def _scope(self, node: Node) -> list[str]:
        """The path in a node's name ("/layer1/layer1.0/relu/Relu"); without one, beside the layer before it."""
        parts = scope_of(node.name)
        if len(parts) == 1:
            return [*self.scope, parts[0]]
        inner = ".".join(parts[:-1])
        free = inner not in self.prefixes and inner not in self.taken and self.shared[inner] == 1
        return parts[:-1] if free else parts

    def _above(self, path: str) -> str | None:
        """The layer at a beginning of this path, if there is one."""
        parts = path.split(".")
        return next((p for i in range(1, len(parts)) if (p := ".".join(parts[:i])) in self.taken), None)

    def _place(self, path: str, layer: nn.Module) -> tuple[nn.Module, str]:
        owner: nn.Module = self.module
        *scopes, key = path.split(".")
        for scope in scopes:
            if scope not in owner._modules:
                owner.add_module(scope, nn.Module())
            owner = owner._modules[scope]  # type: ignore[assignment]
        owner.add_module(key, layer)
        return owner, key

    def _moved(self, name: str) -> int:
        if name not in self.moved:
            slot = self._fixed(None)
            self.steps.append(Step((self.slots[name], self.slots[self.inputs[0]]), (slot,), True, True, to_device_of))
            self.moved[name] = slot
        return self.moved[name]

    def _conditional(self, node: Node) -> None:
        branches = [node.attributes.get(k) for k in ("then_branch", "else_branch")]
        if not all(isinstance(b, GraphProto) for b in branches) or not node.inputs:
            raise BrokenFile(f"node {node.name!r} (If) lacks a branch.", "The file is malformed.")
        names: list[str] = []
        built: list[GraphModule] = []
        uses: list[tuple[int, ...]] = []
        for branch in branches:
            needs = [n for n in captured(branch) if n not in self.constants]  # type: ignore[arg-type]
            names.extend(n for n in needs if n not in names)
            inner = Builder(branch, self.opset, self.constants, tuple(needs)).build()  # type: ignore[arg-type]
            inner.cacheable = False
            built.append(inner)
            uses.append(tuple(names.index(n) for n in needs))
        if node.inputs[0] not in self.host and node.inputs[0] not in self.constants:
            self.module.cacheable = False
        layer = Conditional(built[0], built[1], uses[0], uses[1])
        path = self._path(node, "")
        owner, key = self._place(path, layer)
        inputs = (self._read(node.inputs[0]), *(self.slots[n] for n in names))
        outputs = tuple(self._slot(o) for o in node.outputs)
        self.steps.append(Step(inputs, outputs, len(outputs) == 1, False, None, owner, key, path))


def scope_of(name: str) -> list[str]:
    """A node's name as a path: "/layer1/layer1.0/relu/Relu" is layer1, 0, relu, Relu."""
    parts: list[str] = []
    pieces = name.strip("/").split("/")
    if len(pieces) == 1:
        return [_part(pieces[0].replace(".", "_"))]
    for piece in pieces[-24:]:
        if parts and piece.startswith(f"{parts[-1]}."):
            parts[-1] = piece
        else:
            parts.append(piece)
    return [_part(p) for piece in parts for p in piece.split(".")][:24]


def captured(graph: GraphProto) -> list[str]:
    """Names that a sub-graph reads from the graph around it."""
    own = {i.name for i in graph.initializer} | {i.name for i in graph.input}
    found: list[str] = []
    for node in graph.node:
        inner = [n for a in node.attribute if a.HasField("g") for n in captured(a.g)]
        found.extend(n for n in (*node.input, *inner) if n and n not in own and n not in found)
        own.update(node.output)
    found.extend(o.name for o in graph.output if o.name not in own and o.name not in found)
    return found


def data_conditions(graph: GraphProto) -> bool:
    """Is there an `If` at all, so that one sample's branch could become the batch's?"""
    return any(node.op_type == "If" for node in graph.node)
