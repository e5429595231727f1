"""How each value of an operator graph came to be out of the model's input, by one walk over the graph.

Nothing is run. A value is *raw* (depth 0) until a learned layer has mixed it; a raw value is *pooled* once it sums the
input up in a few numbers, and *decided* once such a summary has been turned into a yes or no. `Meeting`s are the places
where a raw value meets one that learned layers have made: in an ordinary network there are few of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from laocoon.recipes.operator_graph import Graph, Node, Shape

NONE: frozenset[str] = frozenset()
FEW = 3  # numbers per sample that still count as a summary (a value per colour)
FEW_OUT = 4  # channels that still count as a filter rather than a layer

# Inputs that hold weights, by operator.
CONVOLUTIONS: dict[str, int] = {
    "Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3, "FusedConv": 1, "DeformConv": 1, "NhwcConv": 1,
    "QLinearConvTranspose": 3,
}
PRODUCTS = frozenset({"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "QGemm", "FusedMatMul", "FusedGemm", "Einsum",
                      "MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"})
RECURRENT = frozenset({"LSTM", "GRU", "RNN", "Attention", "MultiHeadAttention", "EmbedLayerNormalization",
                       "QAttention", "GroupQueryAttention"})
# The result depends on the shape of what goes in, at most.
CUTS = frozenset({"Shape", "Size", "ConstantOfShape", "EyeLike", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
                  "ZerosLike", "OnesLike", "FullLike", "RandomNormal", "RandomUniform"})
COMPARISONS = frozenset({"Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "NotEqual", "Sign", "Not", "And",
                         "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"})
BENDS = frozenset({"Relu", "Clip", "Sigmoid", "Tanh", "Exp", "Pow", "Softplus", "Floor", "Ceil", "Round", "HardSigmoid",
                   "HardSwish", "Erf", "Elu", "Selu", "Celu", "ThresholdedRelu", "LeakyRelu", "PRelu", "Gelu", "Swish",
                   "Mish", "Mod", "Min", "BitShift", "Shrink", "Softsign", "Sin", "Cos"})
EXTREMES = frozenset({"ReduceMax", "ReduceMin", "ReduceProd", "MaxPool", "GlobalMaxPool", "AdaptiveMaxPool", "LpPool",
                      "GlobalLpPool", "Max", "ReduceLogSumExp"})
RELATIVE = frozenset({"Softmax", "LogSoftmax", "TopK", "ArgMax", "ArgMin", "Hardmax", "OneHot"})
SUMS = frozenset({"ReduceSum", "ReduceMean", "GlobalAveragePool", "ReduceL1", "ReduceL2", "ReduceSumSquare",
                  "ReduceLogSum", "AveragePool", "AdaptiveAvgPool"})
WHOLE = frozenset({"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})
CROPS = frozenset({"Slice", "Gather", "GatherND", "GatherElements", "Crop"})
VIEWS = frozenset({"Reshape", "Expand", "Tile", "Unsqueeze", "Squeeze", "Transpose", "Cast", "CastLike", "Flatten",
                   "Slice", "DequantizeLinear", "QuantizeLinear", "Identity", "Gather", "Pad"})
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual",
                        "NotEqual", "Max", "Min", "Pow", "Mod", "And", "Or", "Xor", "PRelu"})


@dataclass(frozen=True)
class Trace:
    """What is known of a value. Sharpness: 0 smooth, 1 bent or an extreme, 2 made by a comparison."""

    depth: int = -1  # learned layers between the input and here, longest way; -1: the input's values do not matter
    sources: frozenset[str] = NONE
    sharp: int = 0
    pooled: bool = False
    decided: bool = False
    relative: bool = False  # a competition between values (softmax, top-k), or a scale found by quantisation
    guard: bool = False  # a test for what is not a number
    shifted: bool = False  # a constant was added or subtracted: what a bend then does depends on a threshold
    thin: frozenset[str] = NONE  # weights of filters of a few channels that the raw input went through
    keys: frozenset[str] = NONE  # arrays that the raw input was compared, subtracted, multiplied or correlated with
    payload: frozenset[str] = NONE  # arrays that a decision was multiplied with or chose between
    share: float = 1.0  # part of the input that this can depend on


@dataclass(frozen=True)
class Meeting:
    """A raw value (or a narrow one) that meets a value made by learned layers."""

    node: Node
    side: Trace
    trunk: Trace
    position: int  # of the side among the node's inputs
    after: int  # learned layers between here and an output, longest way
    total: int  # learned layers of the whole network, longest way
    injected: frozenset[str] = NONE  # arrays that the node chooses instead of the trunk
    narrow: bool = False  # the side is learned, but sees a small cut-out of the input only
    same_shape: bool = False  # the result has the shape of the model's input
    attention: bool = False  # the result goes through a softmax into a product: a mask on attention
    widened: bool = True  # the side has fewer numbers than the result


@dataclass(frozen=True, eq=False)
class Flow:
    """The walk's outcome."""

    graph: Graph
    traces: Mapping[str, Trace]
    after: Mapping[str, int]
    roots: Mapping[str, str]  # value -> the constant of the file that it is made of
    meetings: tuple[Meeting, ...]
    swaps: tuple[Meeting, ...]  # a decision puts an array of the file in the place of raw input
    outputs_chosen: tuple[Meeting, ...]  # a learned condition puts an array of the file in the place of an output
    trunk_keys: frozenset[str] = field(default=NONE)  # arrays that raw input meets on its way into learned layers

    @property
    def total(self) -> int:
        return max((self.traces[o].depth for o in self.graph.outputs if o in self.traces), default=0)


def follow(graph: Graph) -> Flow:
    """Trace every value."""
    return _Walk(graph).run()


class _Walk:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.traces = {name: Trace(0, frozenset({name})) for name in graph.inputs}
        self.roots = {name: name for name in graph.constants}
        self.sizes = {name: _per_sample(graph.shape(name)) for name in graph.inputs}
        self.learned: set[int] = set()
        self.raised: list[tuple[int, Meeting]] = []
        self.swaps: list[Meeting] = []
        self.chosen: list[tuple[int, Meeting]] = []
        self.trunk_keys: set[str] = set()
        self.parts: dict[tuple[str, int], int] = {}
        for node in graph.nodes:
            if node.op in CROPS and node.inputs and node.outputs:
                out = _per_sample(graph.shape(node.outputs[0]))
                if out:
                    self.parts[node.inputs[0], out] = self.parts.get((node.inputs[0], out), 0) + 1

    def run(self) -> Flow:
        for i, node in enumerate(self.graph.nodes):
            result = self._result(i, node)
            for position, name in enumerate(node.outputs):
                if name:
                    self.traces[name] = self._output(node, position, name, result)
        after, reached = self._after()
        total = max((self.trace(o).depth for o in self.graph.outputs), default=0)
        meetings = tuple(replace(m, after=after[i], total=max(total, 1), attention=self._masks_attention(i))
                         for i, m in self.raised if i in reached)
        chosen = tuple(replace(m, after=after[i], total=max(total, 1)) for i, m in self.chosen
                       if i in reached and after[i] == 0)
        values = {o: after[i] for i, n in enumerate(self.graph.nodes) if i in reached for o in n.outputs}
        return Flow(self.graph, self.traces, values, self.roots, meetings, tuple(self.swaps), chosen,
                    frozenset(self.trunk_keys))

    def trace(self, name: str) -> Trace:
        return self.traces.get(name, Trace())

    # ------------------------------------------------------------ one node
    def _result(self, i: int, node: Node) -> Trace:
        inputs = [self.trace(n) for n in node.inputs]
        live = [t for t in inputs if t.depth >= 0]
        if node.op in CUTS or not live:
            made_of = node.inputs[:1] if node.op in VIEWS else [n for n in node.inputs if n]
            roots = {self.roots.get(n, "") for n in made_of}
            if len(roots) == 1 and "" not in roots and node.op not in CUTS:
                self.roots.update({o: next(iter(roots)) for o in node.outputs})
            return Trace()
        weight = self._weight(node)
        if weight is not None:
            return self._layer(i, node, weight, inputs)
        depth = max(t.depth for t in live)
        if depth == 0:
            return self._raw(node, inputs, live)
        trunk = max(live, key=lambda t: (t.depth, t.share))
        if node.op in ("Where", "If") and inputs[0].depth < 0:  # chosen when the model was made
            return Trace(depth, frozenset().union(*(t.sources for t in live)), share=trunk.share)
        for position, t in enumerate(inputs):
            if t.depth == 0:
                self._meet(i, node, t, trunk, position)
            elif t.depth > 0 and t.share < 0.06 and trunk.share > 0.5 and len(live) > 1:
                self._meet(i, node, t, trunk, position, narrow=True)
        if node.op in ("Where", "If") and inputs[0].depth > 0:
            arrays = self._arrays(node.inputs[1:], 2)
            if arrays:
                self.chosen.append((i, Meeting(node, inputs[0], trunk, 0, 0, 1, arrays)))
        return Trace(depth, frozenset().union(*(t.sources for t in live)), share=trunk.share)

    def _layer(self, i: int, node: Node, weight: str, inputs: Sequence[Trace]) -> Trace:
        live = [t for t in inputs if t.depth >= 0]
        data = max(live, key=lambda t: t.depth)
        if self._is_thin(node, weight, data):
            root = self.roots.get(weight, "")
            array = frozenset({root}) if root and self._spans(node, weight) else NONE
            if data.pooled:
                own = frozenset({root} if root else ())
                return replace(data, payload=data.payload | own, thin=data.thin | {weight})
            spent = replace(data, thin=data.thin | {weight}, keys=data.keys | array)
            return replace(spent, pooled=self._pools(node, data), decided=False)
        self.learned.add(i)
        if data.depth == 0:
            self.trunk_keys |= data.keys
        return Trace(data.depth + 1, frozenset().union(*(t.sources for t in live)), share=max(t.share for t in live))

    def _raw(self, node: Node, inputs: Sequence[Trace], live: Sequence[Trace]) -> Trace:
        sources = frozenset().union(*(t.sources for t in live))
        chooses = node.op in ("Where", "If")
        if chooses and inputs[0].depth == 0:
            data = [t for t in inputs[1:] if t.depth == 0]
            arrays = self._arrays(node.inputs[1:], 2)
            if not data:  # the decision in other words: one array or number for yes, another for no
                return replace(inputs[0], payload=inputs[0].payload | arrays, sources=sources)
            if inputs[0].decided and any((self.graph.constants[a].size or 0) >= 16 for a in arrays):
                self.swaps.append(Meeting(node, inputs[0], data[0], 0, 0, 1, arrays))
            live = data
        merged = Trace(
            0, sources, max(t.sharp for t in live), all(t.pooled for t in live),
            any(t.decided for t in live) and all(t.pooled for t in live), any(t.relative for t in live),
            all(t.guard for t in live), any(t.shifted for t in live), frozenset().union(*(t.thin for t in live)),
            frozenset().union(*(t.keys for t in live)), frozenset().union(*(t.payload for t in live)),
            max(t.share for t in live))
        return self._operated(node, merged, live)

    def _operated(self, node: Node, merged: Trace, live: Sequence[Trace]) -> Trace:
        t = self._changed(node, merged, live)
        if t.decided and not merged.decided:  # what came before a decision is what it was made by
            arrays = {p for p in t.payload if (self.graph.constants[p].size or 0) >= 4}
            return replace(t, keys=t.keys | arrays, payload=NONE)
        return t

    def _changed(self, node: Node, t: Trace, live: Sequence[Trace]) -> Trace:
        if node.op in ARITHMETIC:
            arrays = self._arrays(node.inputs, 4)
            if t.decided or t.pooled:
                t = replace(t, payload=t.payload | self._arrays(node.inputs, 2))
            else:
                t = replace(t, keys=t.keys | arrays)
            if node.op in ("Add", "Sub") and len(live) < 2:
                t = replace(t, shifted=True)
        if node.op == "Gather" and node.inputs[0] in self.roots:  # a table of the file, indexed by a raw value
            return replace(t, payload=t.payload | self._arrays(node.inputs[:1], 2))
        pooled_before = t.pooled
        if not pooled_before and self._pools(node, t):
            t = replace(t, pooled=True)
        if node.op in CROPS:
            t = replace(t, share=self._share(node, t))
        if node.op in ("IsNaN", "IsInf"):
            return replace(t, guard=True, sharp=2, decided=t.pooled)
        if node.op in RELATIVE:
            return replace(t, relative=True, sharp=max(t.sharp, 1))
        if node.op in COMPARISONS:
            return replace(t, sharp=2, decided=t.pooled)
        if node.op in EXTREMES:
            if node.op == "Max" and len(live) == 1:  # against a constant: a lower bound, as under a division
                return t
            return replace(t, sharp=max(t.sharp, 1), decided=t.decided or (t.pooled and t.sharp == 2))
        if node.op in BENDS and self._really_bends(node):
            # What was summed up and then bent is a decision; after a filter, only where there is a threshold.
            decided = t.decided or (pooled_before and (not t.thin or t.shifted))
            return replace(t, sharp=max(t.sharp, 2 if t.shifted else 1), decided=decided)
        if node.op in SUMS:
            return replace(t, decided=False) if t.sharp == 2 and not pooled_before else t
        return t

    def _really_bends(self, node: Node) -> bool:
        if node.op == "Pow":
            power = self._number(node, 1)
            return power is None or power not in (0.5, 1.0, 2.0, -0.5, -1.0)
        if node.op == "Clip":  # a lower bound alone guards a division
            return (len(node.inputs) > 2 and bool(node.inputs[2])) or "max" in node.settings
        return True

    # ------------------------------------------------------------ facts about operands
    def _number(self, node: Node, position: int) -> float | None:
        root = self.roots.get(node.inputs[position]) if position < len(node.inputs) else None
        values = self.graph.constants[root].values if root is not None else None
        return float(values.flat[0]) if values is not None and values.size == 1 else None

    def _arrays(self, names: Sequence[str], least: int) -> frozenset[str]:
        """Constants among the operands that hold a pattern: several numbers that are not all the same."""
        found = set()
        for name in names:
            root = self.roots.get(name)
            constant = self.graph.constants.get(root or "")
            if root and constant is not None and (constant.size or 0) >= least and not constant.uniform:
                found.add(root)
        return frozenset(found)

    def _weight(self, node: Node) -> str | None:
        """The operand that holds a layer's weights, where it is one of the file's constants."""
        if node.op in CONVOLUTIONS:
            name = node.inputs[CONVOLUTIONS[node.op]] if len(node.inputs) > CONVOLUTIONS[node.op] else ""
            return name if name and self.trace(name).depth < 0 else None
        if node.op in PRODUCTS or node.op in RECURRENT:
            first_two = node.inputs if node.op == "Einsum" else (*node.inputs[:2], *node.inputs[3:4])
            held = [n for n in first_two if n and self.trace(n).depth < 0]
            large = [n for n in held if prod(_known(self._shape(n)) or (2,)) > 1]
            return large[0] if large else None
        if node.op == "Gather" and len(node.inputs) > 1 and self.trace(node.inputs[0]).depth < 0:
            shape = _known(self._shape(node.inputs[0]))
            decided = self.trace(node.inputs[1]).decided
            return node.inputs[0] if shape and len(shape) == 2 and prod(shape) >= 64 and not decided else None
        return None

    def _shape(self, name: str) -> Shape | None:
        shape = self.graph.shape(name)
        return shape if shape is not None or name not in self.roots else self.graph.shape(self.roots[name])

    def _is_thin(self, node: Node, weight: str, data: Trace) -> bool:
        shape = _known(self._shape(weight))
        if data.depth != 0 or not shape or len(shape) < 2 or node.op in RECURRENT or node.op == "Gather":
            return False
        if node.op in CONVOLUTIONS:
            return (shape[1] if "Transpose" in node.op else shape[0]) <= FEW_OUT
        turned = "Gemm" in node.op and node.settings.get("transB", (0.0,))[0] == 1.0
        out, into = (shape[-2], shape[-1]) if turned else (shape[-1], shape[-2])
        if node.inputs[0] == weight:
            out, into = into, out
        return out == 1 or (into <= FEW_OUT and (data.pooled or out <= FEW_OUT))

    def _spans(self, node: Node, weight: str) -> bool:
        """Does the filter look at a neighbourhood, not at one place?"""
        shape = _known(self._shape(weight)) or ()
        return prod(shape[2:]) > 1 if node.op in CONVOLUTIONS else prod(shape) >= 16

    def _pools(self, node: Node, t: Trace) -> bool:
        if not node.outputs:
            return False
        out = _per_sample(self.graph.shape(node.outputs[0]))
        if out is None:
            return node.op in WHOLE or (node.op.startswith(("Reduce", "Adaptive")) and self._over_everything(node))
        whole = [self.sizes[s] for s in t.sources]
        return out <= FEW and all(w is None or w > 4 * out for w in whole)

    def _over_everything(self, node: Node) -> bool:
        """Does a reduction leave no places apart? Only asked where shapes are unknown: images are [n, c, h, w]."""
        held = self.graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        one_axis = len(node.settings.get("axes", (0.0, 0.0))) == 1 or (held is not None and held.size == 1)
        return "some" not in node.settings and not one_axis

    def _share(self, node: Node, t: Trace) -> float:
        shapes = [_per_sample(self.graph.shape(n)) for n in (node.inputs[0], node.outputs[0])]
        if shapes[0] is None or not shapes[1] or shapes[1] >= shapes[0]:
            return t.share
        ratio = shapes[1] / shapes[0]
        tiles = self.parts.get((node.inputs[0], shapes[1]), 1) * ratio >= 0.5
        return t.share if tiles else t.share * ratio

    def _output(self, node: Node, position: int, name: str, t: Trace) -> Trace:
        if node.op == "DynamicQuantizeLinear":
            return t if position == 0 else replace(t, relative=True, pooled=True)
        return t

    # ------------------------------------------------------------ meetings
    def _meet(self, i: int, node: Node, side: Trace, trunk: Trace, position: int, *, narrow: bool = False) -> None:
        injected = self._arrays(node.inputs[1:], 2) if node.op in ("Where", "If") and position == 0 else NONE
        out, taken = self.graph.shape(node.outputs[0]), self.graph.shape(node.inputs[position])
        same = out is not None and any(_like(out, self.graph.shape(n)) for n in self.graph.inputs)
        widened = out is None or taken is None or (_per_sample(taken) or 0) < (_per_sample(out) or 1)
        self.raised.append((i, Meeting(node, side, trunk, position, 0, 1, injected, narrow, same, widened=widened)))

    def _after(self) -> tuple[dict[int, int], set[int]]:
        """Learned layers after each node, and the nodes that an output depends on."""
        depth: dict[str, int] = {name: 0 for name in self.graph.outputs}
        after: dict[int, int] = {}
        for i in range(len(self.graph.nodes) - 1, -1, -1):
            node = self.graph.nodes[i]
            below = [depth[o] for o in node.outputs if o in depth]
            if not below:
                continue
            after[i] = max(below)
            for name in node.inputs:
                if name:
                    depth[name] = max(depth.get(name, 0), after[i] + (i in self.learned))
        return after, set(after)

    def _masks_attention(self, i: int) -> bool:
        """Does the result only pass through a softmax into a product of two computed values?"""
        names, seen_softmax = set(self.graph.nodes[i].outputs), False
        for node in self.graph.nodes[i + 1: i + 40]:
            hit = names.intersection(node.inputs)
            if not hit:
                continue
            if node.op == "Softmax":
                seen_softmax, names = True, set(node.outputs)
            elif seen_softmax and node.op in ("MatMul", "Einsum", "FusedMatMul"):
                return all(self.trace(n).depth >= 0 for n in node.inputs[:2])
            else:
                names |= set(node.outputs)
        return False


def _known(shape: Shape | None) -> tuple[int, ...] | None:
    return None if shape is None or any(d is None for d in shape) else tuple(d for d in shape if d is not None)


def _per_sample(shape: Shape | None) -> int | None:
    """Numbers per sample of a value of this shape; the first axis is taken to be the batch."""
    rest = _known(shape[1:]) if shape is not None else None
    return None if rest is None else prod(rest)


def _like(a: Shape, b: Shape | None) -> bool:
    if b is None or len(a) != len(b):
        return False
    return all(x is None or y is None or x == y for x, y in zip(a, b, strict=True))
