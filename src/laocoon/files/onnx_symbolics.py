"""ONNX for operators of torch that its exporter by tracing lacks or half knows.

Attention traced without gradients is one fused operator, which torch differentiates no more than it exports it: written
out here, the graph has gradients. `g` is the exporter's graph, other arguments its values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.onnx import symbolic_helper

OPSET = 17  # of LayerNormalization; the exporter writes 17 or higher


def register() -> None:
    """Tell the exporter; doing so twice does no harm."""
    ours: dict[str, Callable[..., Any]] = {
        "unflatten": unflatten, "layer_norm": layer_norm,
        "adaptive_avg_pool2d": adaptive_mean, "_native_multi_head_attention": fused_attention,
        "_transformer_encoder_layer_fwd": fused_encoder_layer}
    for name, symbolic in ours.items():
        torch.onnx.register_custom_op_symbolic(f"aten::{name}", symbolic, OPSET)


@symbolic_helper.parse_args("v", "i", "v")
def unflatten(g: Any, x: Any, axis: int, sizes: Any) -> Any:
    """aten::unflatten with the rank of its result, which the exporter's own forgets: attention cannot do without."""
    rank, parts = x.type().dim(), list(sizes.node().inputs())
    if rank is None or sizes.node().kind() != "prim::ListConstruct":
        raise torch.onnx.errors.SymbolicValueError("unflatten of a tensor of unknown rank", x)
    number = lambda n: g.op("Constant", value_t=torch.tensor([n]))  # noqa: E731
    shape, axis = g.op("Shape", x), axis % rank
    before = [g.op("Slice", shape, number(0), number(axis))] if axis else []
    behind = [g.op("Slice", shape, number(axis + 1), number(rank))] if axis + 1 < rank else []
    wanted = [*before, *(g.op("Reshape", part, number(1)) for part in parts), *behind]
    result = g.op("Reshape", x, g.op("Concat", *wanted, axis_i=0))
    result.setType(x.type().with_sizes([None] * (rank - 1 + len(parts))))
    return result


@symbolic_helper.parse_args("v", "v", "v", "v", "f", "v")
def layer_norm(g: Any, x: Any, shape: Any, weight: Any, bias: Any, eps: float, cudnn: Any) -> Any:
    """aten::layer_norm whose shape may be read off the input, as Keras does: the number of axes is all that counts."""
    axes = len(list(shape.node().inputs())) or len(symbolic_helper._maybe_get_const(shape, "is"))
    if symbolic_helper._is_none(weight):
        last = g.op("Slice", g.op("Shape", x), _whole(g, [-axes]), _whole(g, [2**31]))
        weight = g.op("Expand", _number(g, 1.0), last)
    more = [] if symbolic_helper._is_none(bias) else [bias]
    return g.op("LayerNormalization", x, weight, *more, axis_i=-axes, epsilon_f=eps).setType(x.type())


@symbolic_helper.parse_args("v", "is")
def adaptive_mean(g: Any, x: Any, size: list[int]) -> Any:
    """aten::adaptive_avg_pool2d to any size, also to more places than there are: VGG ends so on small pictures.

    Where windows are not of one size, each axis is a product with the shares that its places have in each window.
    """
    if tuple(size) == (1, 1):
        return g.op("GlobalAveragePool", x)
    before = x.type().varyingSizes() or [None] * 4
    sides = before[-2:]
    if None in sides:
        raise torch.onnx.errors.SymbolicValueError("adaptive pooling of pictures of unknown size", x)
    if all(side % to == 0 for side, to in zip(sides, size, strict=True)):
        window = [side // to for side, to in zip(sides, size, strict=True)]
        return g.op("AveragePool", x, kernel_shape_i=window, strides_i=window)
    rows, columns = (_shares(side, to) for side, to in zip(sides, size, strict=True))
    said = g.op("MatMul", g.op("MatMul", g.op("Constant", value_t=rows), x), g.op("Constant", value_t=columns.T))
    return said.setType(x.type().with_sizes([*before[:-2], *size]))


def _shares(places: int, windows: int) -> Tensor:
    """[windows, places]: what each place counts in the mean of each window."""
    start = torch.arange(windows) * places // windows
    end = -(-(torch.arange(windows) + 1) * places // windows)
    at = torch.arange(places)
    inside = ((at >= start[:, None]) & (at < end[:, None])).float()
    return inside / inside.sum(1, keepdim=True)


@symbolic_helper.parse_args("v", "v", "v", "i", "i", "v", "v", "v", "v", "v", "b", "b", "v")
def fused_attention(g: Any, query: Any, key: Any, value: Any, width: int, heads: int, weight: Any, bias: Any,
                    out_weight: Any, out_bias: Any, mask: Any, weights_wanted: bool, mean_wanted: bool,
                    kind: Any) -> Any:
    """aten::_native_multi_head_attention of a sequence with itself: [n, length, width] -> the same, and no weights."""
    if len({v.debugName() for v in (query, key, value)}) > 1 or weights_wanted:
        raise torch.onnx.errors.SymbolicValueError("fused attention between two sequences, or with its weights", query)
    _no_mask(mask)
    said = _attention(g, query, width, heads, (weight, bias), (out_weight, out_bias))
    return said, g.op("Constant", value_t=torch.zeros(0))


@symbolic_helper.parse_args("v", "i", "i", "v", "v", "v", "v", "b", "b", "f", *"vvvvvvvvvv")
def fused_encoder_layer(g: Any, x: Any, width: int, heads: int, weight: Any, bias: Any, out_weight: Any, out_bias: Any,
                        gelu: bool, norm_first: bool, eps: float, norm_1: Any, norm_bias_1: Any, norm_2: Any,
                        norm_bias_2: Any, dense_1: Any, dense_bias_1: Any, dense_2: Any, dense_bias_2: Any, mask: Any,
                        kind: Any) -> Any:
    """aten::_transformer_encoder_layer_fwd: attention and two dense layers, each beside a skip, [n, length, width]."""
    _no_mask(mask)

    def norm(value: Any, scale: Any, shift: Any) -> Any:
        return g.op("LayerNormalization", value, scale, shift, axis_i=-1, epsilon_f=eps)

    def mix(value: Any) -> Any:
        return _attention(g, value, width, heads, (weight, bias), (out_weight, out_bias))

    def dense(value: Any) -> Any:
        inner = _linear(g, value, dense_1, dense_bias_1)
        return _linear(g, _gelu(g, inner) if gelu else g.op("Relu", inner), dense_2, dense_bias_2)

    if norm_first:
        x = g.op("Add", x, mix(norm(x, norm_1, norm_bias_1)))
        said = g.op("Add", x, dense(norm(x, norm_2, norm_bias_2)))
    else:
        x = norm(g.op("Add", x, mix(x)), norm_1, norm_bias_1)
        said = norm(g.op("Add", x, dense(x)), norm_2, norm_bias_2)
    return said


def _no_mask(mask: Any) -> None:
    if not symbolic_helper._is_none(mask):
        raise torch.onnx.errors.SymbolicValueError("fused attention with a mask", mask)


def _attention(g: Any, x: Any, width: int, heads: int, into: tuple[Any, Any], out: tuple[Any, Any]) -> Any:
    """into: weights [3 · width, width] and bias of query, key and value together; out: of the projection."""
    depth = width // heads
    mixed = _parted(g, _linear(g, x, *into), [3, heads, depth])
    apart = g.op("Transpose", mixed, perm_i=[2, 0, 3, 1, 4])  # [3, n, heads, length, depth]
    query, key, value = (g.op("Gather", apart, g.op("Constant", value_t=torch.tensor(i)), axis_i=0) for i in range(3))
    likeness = g.op("MatMul", query, g.op("Transpose", key, perm_i=[0, 1, 3, 2]))
    share = g.op("Softmax", g.op("Mul", likeness, _number(g, depth**-0.5)), axis_i=-1)
    said = g.op("Transpose", g.op("MatMul", share, value), perm_i=[0, 2, 1, 3])
    said = _linear(g, _parted(g, said, [width]), *out)
    said.setType(x.type())  # what follows may need to know its rank
    return said


def _linear(g: Any, x: Any, weight: Any, bias: Any) -> Any:
    return g.op("Add", g.op("MatMul", x, g.op("Transpose", weight, perm_i=[1, 0])), bias)


def _gelu(g: Any, x: Any) -> Any:
    gate = g.op("Add", g.op("Erf", g.op("Mul", x, _number(g, 0.5**0.5))), _number(g, 1.0))
    return g.op("Mul", g.op("Mul", x, gate), _number(g, 0.5))


def _parted(g: Any, x: Any, rest: list[int]) -> Any:
    """[n, length, …] -> [n, length, *rest]; zeros for what stays are more than the exporter's shapes can bear."""
    stays = g.op("Slice", g.op("Shape", x), _whole(g, [0]), _whole(g, [2]))
    return g.op("Reshape", x, g.op("Concat", stays, _whole(g, rest), axis_i=0))


def _whole(g: Any, numbers: list[int]) -> Any:
    return g.op("Constant", value_t=torch.tensor(numbers))


def _number(g: Any, value: float) -> Any:
    return g.op("Constant", value_t=torch.tensor(value))
