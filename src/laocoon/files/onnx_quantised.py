"""Quantised operators of ONNX, as differentiable float32 arithmetic on whole numbers.

y = clip(round(x / s) + z) going forward and, going back, the gradient of x / s where it was not clipped and zero
where it was (straight through, arXiv 1308.3432). int8 constants are dequantised when the graph is read.
"""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from laocoon.files.onnx_node import INTEGER_RANGE, Node
from laocoon.files.onnx_operators import OPERATORS, Function, operator, straight_through


def _aligned(value: Any, x: Tensor, axis: int) -> Any:
    """A scale or zero point for each slice of an axis, broadcast against x."""
    if not isinstance(value, Tensor) or value.numel() == 1:
        return value.reshape(()) if isinstance(value, Tensor) else value
    return value.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


def quantise(x: Tensor, scale: Any, zero: Any, low: int, high: int, axis: int = 1) -> Tensor:
    exact = x / _aligned(scale, x, axis)
    if zero is not None:
        exact = exact + _aligned(zero, x, axis)
    clipped = exact.clamp(low, high)
    return straight_through(clipped, clipped.detach().round())


def dequantise(x: Tensor, scale: Any, zero: Any = None, axis: int = 1) -> Tensor:
    x = x.to(torch.float32)
    shifted: Tensor = x if zero is None else x - _aligned(zero, x, axis)
    real: Tensor = shifted * _aligned(scale, x, axis)
    return real


def _limits(node: Node) -> tuple[int, int]:
    low, high = INTEGER_RANGE.get(node.kind or TensorProto.UINT8, (-(2**31), 2**31 - 1))  # type: ignore[call-overload]
    return low, high


@operator("QuantizeLinear")
def _quantize(node: Node) -> Function:
    low, high = _limits(node)
    axis = node.integer("axis", 1)
    return lambda x, scale, zero=None: quantise(x, scale, zero, low, high, axis)


@operator("DequantizeLinear")
def _dequantize(node: Node) -> Function:
    axis, block = node.integer("axis", 1), node.integer("block_size")

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        if block:
            scale = scale.repeat_interleave(block, axis)
            zero = None if zero is None else zero.repeat_interleave(block, axis)
            return (x.float() if zero is None else x.float() - zero) * scale
        return dequantise(x, scale, zero, axis)

    return run


@operator("DynamicQuantizeLinear")
def _dynamic(node: Node) -> Function:
    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
            scale = ((high - low) / 255).clamp_min(1e-30)
            zero = (-low / scale).round().clamp(0, 255)
        return quantise(x, scale, zero, 0, 255), scale, zero

    return run


@operator("MatMulInteger")
def _matmul_integer(node: Node) -> Function:
    def run(a: Tensor, b: Tensor, a_zero: Any = None, b_zero: Any = None) -> Any:
        left = a if a_zero is None else a - (a_zero.unsqueeze(-1) if a_zero.dim() and a_zero.numel() > 1 else a_zero)
        return left @ (b if b_zero is None else b - b_zero)

    return run


@operator("ConvInteger")
def _conv_integer(node: Node) -> Function:
    convolve = OPERATORS["Conv"](node)

    def run(x: Tensor, w: Tensor, x_zero: Any = None, w_zero: Any = None) -> Any:
        return convolve(x if x_zero is None else x - x_zero, w if w_zero is None else w - _aligned(w_zero, w, 0))

    return run


@operator("QLinearConv")
def _qlinear_conv(node: Node) -> Function:
    convolve, (low, high) = OPERATORS["Conv"](node), _limits(node)

    def run(x: Tensor, xs: Tensor, xz: Tensor, w: Tensor, ws: Tensor, wz: Tensor, ys: Tensor, yz: Tensor,
            bias: Tensor | None = None) -> Tensor:
        real = None if bias is None else bias * (xs * ws).reshape(-1)
        return quantise(convolve(dequantise(x, xs, xz), dequantise(w, ws, wz, 0), real), ys, yz, low, high)

    return run


@operator("QLinearMatMul")
def _qlinear_matmul(node: Node) -> Function:
    low, high = _limits(node)

    def run(a: Tensor, a_s: Tensor, a_z: Tensor, b: Tensor, b_s: Tensor, b_z: Tensor, ys: Tensor, yz: Tensor) -> Tensor:
        return quantise(dequantise(a, a_s, a_z, -2) @ dequantise(b, b_s, b_z, -1), ys, yz, low, high)

    return run


@operator("QGemm")
def _qgemm(node: Node) -> Function:
    low, high = _limits(node)
    alpha, flip_a, flip_b = node.number("alpha", 1.0), node.integer("transA"), node.integer("transB")

    def run(a: Tensor, a_s: Tensor, a_z: Tensor, b: Tensor, b_s: Tensor, b_z: Tensor, c: Tensor | None = None,
            ys: Tensor | None = None, yz: Tensor | None = None) -> Tensor:
        left, right = dequantise(a, a_s, a_z), dequantise(b, b_s, b_z, 0 if flip_b else 1)
        product = alpha * (left.t() if flip_a else left) @ (right.t() if flip_b else right)
        if c is not None:
            product = product + c * (alpha * a_s * b_s)
        return product if ys is None else quantise(product, ys, yz, low, high)

    return run


def _binary(apply: Function) -> Any:
    def factory(node: Node) -> Function:
        low, high = _limits(node)

        def run(a: Tensor, a_s: Tensor, a_z: Tensor, b: Tensor, b_s: Tensor, b_z: Tensor, ys: Tensor,
                yz: Any = None) -> Tensor:
            return quantise(apply(dequantise(a, a_s, a_z), dequantise(b, b_s, b_z)), ys, yz, low, high)

        return run

    return factory


OPERATORS["QLinearAdd"], OPERATORS["QLinearMul"] = _binary(torch.add), _binary(torch.mul)


def _unary(name: str) -> Any:
    def factory(node: Node) -> Function:
        (low, high), apply = _limits(node), OPERATORS[name](node)

        def run(x: Tensor, xs: Tensor, xz: Any, ys: Tensor, yz: Any = None) -> Tensor:
            return quantise(apply(dequantise(x, xs, xz)), ys, yz, low, high)

        return run

    return factory


for _name in ("Sigmoid", "LeakyRelu", "GlobalAveragePool", "AveragePool", "Softmax"):
    OPERATORS[f"QLinear{_name}"] = _unary(_name)


@operator("QLinearConcat")
def _qlinear_concat(node: Node) -> Function:
    (low, high), axis = _limits(node), node.integer("axis", 1)

    def run(ys: Tensor, yz: Tensor, *rest: Tensor) -> Tensor:
        parts = [dequantise(rest[i], rest[i + 1], rest[i + 2]) for i in range(0, len(rest), 3)]
        return quantise(torch.cat(parts, axis), ys, yz, low, high)

    return run


__all__ = ["OPERATORS"]
