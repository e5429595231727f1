"""Operators of ONNX as differentiable functions, one entry each: the factory reads the attributes once.

A function receives its inputs by position. An input that was known when the graph was read and that only steers
the operator (a shape, axes, limits) arrives as a Python value, anything else as a tensor. Quantised integers are
float32 tensors that hold whole numbers; rounding passes gradients straight through (Bengio et al., arXiv 1308.3432).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.errors import BrokenFile
from laocoon.files.onnx_node import INTEGER_RANGE, LARGEST_TENSOR, Node, dtype_of, is_quantised

Function = Callable[..., Any]
Factory = Callable[[Node], Function]

OPERATORS: dict[str, Factory] = {}

# Inputs that steer an operator, by position: read into Python values when they are constants.
STEERING: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "Slice": (1, 2, 3, 4), "Pad": (1, 2, 3), "Expand": (1,),
    "Tile": (1,), "Resize": (1, 2, 3), "Upsample": (1,), "TopK": (1,), "Split": (1,), "Clip": (1, 2),
    "ConstantOfShape": (0,), "Range": (0, 1, 2), "OneHot": (1,), "Dropout": (1, 2), "CumSum": (1,), "Trilu": (1,),
    **{f"Reduce{kind}": (1,) for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum",
                                          "LogSumExp")},
    "Pow": (1,), "Gather": (1,), "Add": (0, 1), "Mul": (0, 1), "Sub": (0, 1), "Div": (0, 1),
}
# Of these, only scalars steer; larger constants are data.
SCALARS_ONLY = frozenset({"Pow", "Gather", "Add", "Mul", "Sub", "Div", "Clip"})

# Views and bookkeeping: no layer of their own among the subject's layers.
VIEWS = frozenset({
    "Reshape", "Squeeze", "Unsqueeze", "Slice", "Expand", "Identity", "Cast", "CastLike", "Transpose", "Flatten",
    "Split", "Gather", "Shape", "Size", "ConstantOfShape", "Range", "Dropout", "Constant", "EyeLike", "Tile",
})


def operator(*names: str) -> Callable[[Factory], Factory]:
    def enter(factory: Factory) -> Factory:
        for name in names:
            OPERATORS[name] = factory
        return factory

    return enter


def whole(value: Any) -> list[int]:
    """A steering input as a list of integers."""
    if isinstance(value, Tensor):
        return value.reshape(-1).tolist()
    return list(value) if isinstance(value, Sequence) else [value]


def number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def within(shape: Sequence[int]) -> list[int]:
    """The shape, after checking that a tensor of it may be made at all."""
    if math.prod(max(int(s), 1) for s in shape) > LARGEST_TENSOR:
        raise BrokenFile(f"the graph asks for a tensor of shape {list(shape)}.",
                         f"Values of more than {LARGEST_TENSOR} elements are refused.")
    return [int(s) for s in shape]


def straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` going forward, the gradient of `exact` going back."""
    return rounded.detach() + (exact - exact.detach()) if exact.requires_grad else rounded


# ---------------------------------------------------------------- elementwise
def _plain(function: Any) -> Factory:
    return lambda node: function


for _name, _function in {
    "Relu": functional.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp, "Log": torch.log,
    "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg, "Erf": torch.erf, "Floor": torch.floor,
    "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos,
    "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh,
    "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh,
    "Reciprocal": torch.reciprocal, "Softplus": functional.softplus, "Softsign": functional.softsign,
    "Mish": functional.mish, "Not": torch.logical_not, "IsNaN": torch.isnan, "Identity": lambda x: x,
    "MatMul": torch.matmul, "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
    "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt, "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le,
    "Det": torch.det, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor, "BitwiseNot": torch.bitwise_not,
    "HardSwish": functional.hardswish,
}.items():
    OPERATORS[_name] = _plain(_function)


def _arithmetic(apply: Function) -> Factory:
    return lambda node: apply


def _add(a: Any, b: Any) -> Any:
    return a + b


def _sub(a: Any, b: Any) -> Any:
    return a - b


def _mul(a: Any, b: Any) -> Any:
    return a * b


def _div(a: Any, b: Any) -> Any:
    kinds = [v.is_floating_point() if isinstance(v, Tensor) else isinstance(v, float) for v in (a, b)]
    if not any(kinds):
        return torch.div(torch.as_tensor(a), b, rounding_mode="trunc")
    return a / b


for _name, _function in {"Add": _add, "Sub": _sub, "Mul": _mul, "Div": _div}.items():
    OPERATORS[_name] = _arithmetic(_function)


@operator("Pow")
def _pow(node: Node) -> Function:
    def run(x: Tensor, exponent: Any) -> Tensor:
        result = torch.pow(x, exponent)
        return result.to(x.dtype) if result.dtype != x.dtype else result

    return run


@operator("Mod")
def _mod(node: Node) -> Function:
    return torch.fmod if node.integer("fmod") else torch.remainder


@operator("BitShift")
def _shift(node: Node) -> Function:
    return torch.bitwise_left_shift if node.text("direction") == "LEFT" else torch.bitwise_right_shift


@operator("IsInf")
def _isinf(node: Node) -> Function:
    positive, negative = node.integer("detect_positive", 1), node.integer("detect_negative", 1)
    return lambda x: torch.isinf(x) & (((x > 0) & bool(positive)) | ((x < 0) & bool(negative)))


def _variadic(pair: Callable[[Tensor, Tensor], Tensor]) -> Factory:
    def factory(node: Node) -> Function:
        def run(first: Tensor, *others: Tensor) -> Tensor:
            for other in others:
                first = pair(first, other)
            return first

        return run

    return factory


OPERATORS["Max"], OPERATORS["Min"] = _variadic(torch.maximum), _variadic(torch.minimum)
OPERATORS["Sum"] = _variadic(torch.add)


@operator("Mean")
def _mean(node: Node) -> Function:
    return lambda *xs: sum(xs[1:], xs[0]) / len(xs)


@operator("Where")
def _where(node: Node) -> Function:
    return lambda condition, a, b: torch.where(condition.bool(), a, b)


@operator("Clip")
def _clip(node: Node) -> Function:
    low, high = node.attributes.get("min"), node.attributes.get("max")

    def run(x: Tensor, least: Any = None, most: Any = None) -> Tensor:
        least, most = (low if least is None else least), (high if most is None else most)
        if least is None and most is None:
            return x
        if isinstance(least, Tensor) != isinstance(most, Tensor):
            least, most = number(least), number(most)
        return torch.clamp(x, least, most)

    return run


@operator("LeakyRelu")
def _leaky(node: Node) -> Function:
    slope = node.number("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, slope)


@operator("Elu")
def _elu(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


@operator("Celu")
def _celu(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return lambda x: functional.celu(x, alpha)


@operator("Selu")
def _selu(node: Node) -> Function:
    alpha, gamma = node.number("alpha", 1.6732632423543772), node.number("gamma", 1.0507009873554805)
    return lambda x: gamma * functional.elu(x, alpha)


@operator("ThresholdedRelu")
def _thresholded(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


@operator("Shrink")
def _shrink(node: Node) -> Function:
    bias, limit = node.number("bias"), node.number("lambd", 0.5)
    return lambda x: torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


@operator("HardSigmoid")
def _hard_sigmoid(node: Node) -> Function:
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    return lambda x: (alpha * x + beta).clamp(0.0, 1.0)


@operator("Gelu")
def _gelu(node: Node) -> Function:
    approximate = node.text("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate)


@operator("Swish", "QuickGelu")
def _swish(node: Node) -> Function:
    alpha = node.number("alpha", 1.702 if node.op == "QuickGelu" else 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


@operator("PRelu")
def _prelu(node: Node) -> Function:
    return lambda x, slope: torch.where(x >= 0, x, slope * x)


def _softmax_like(function: Function) -> Factory:
    def factory(node: Node) -> Function:
        axis = node.integer("axis", 1 if node.opset < 13 else -1)
        if node.opset >= 13:
            return lambda x: function(x, dim=axis)

        def run(x: Tensor) -> Any:  # before opset 13 the input was taken as a matrix split at `axis`
            if axis in (-1, x.dim() - 1):
                return function(x, dim=-1)
            return function(x.flatten(axis if axis >= 0 else axis + x.dim()), dim=-1).reshape(x.shape)

        return run

    return factory


OPERATORS["Softmax"], OPERATORS["LogSoftmax"] = _softmax_like(torch.softmax), _softmax_like(torch.log_softmax)


@operator("Hardmax")
def _hardmax(node: Node) -> Function:
    axis = node.integer("axis", 1 if node.opset < 13 else -1)
    return lambda x: torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


@operator("Cast")
def _cast(node: Node) -> Function:
    kind = node.integer("to", 1)
    target = dtype_of(kind)
    if is_quantised(kind):
        low, high = INTEGER_RANGE[kind]  # type: ignore[index]
        return lambda x: straight_through(x.float(), x.detach().float().trunc().clamp(low, high))
    return lambda x: x if x.dtype == target else x.to(target)


@operator("CastLike")
def _cast_like(node: Node) -> Function:
    return lambda x, like: x.to(like.dtype)


@operator("Dropout")
def _dropout(node: Node) -> Function:
    if len(node.outputs) > 1 and node.outputs[1]:
        return lambda x, *_: (x, torch.ones_like(x, dtype=torch.bool))
    return lambda x, *_: x


# ---------------------------------------------------------------- reductions
def _reducer(function: Callable[[Tensor, list[int], bool], Tensor]) -> Factory:
    def factory(node: Node) -> Function:
        fixed, keep = node.integers("axes"), bool(node.integer("keepdims", 1))
        idle = bool(node.integer("noop_with_empty_axes"))

        def run(x: Tensor, axes: Any = None) -> Tensor:
            chosen = list(fixed) if fixed is not None else whole(axes) if axes is not None else []
            if not chosen:
                if idle:
                    return x
                chosen = list(range(x.dim()))
            return function(x, chosen, keep)

        return run

    return factory


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


for _name, _reduction in {
    "Sum": lambda x, a, k: x.sum(a, keepdim=k), "Mean": lambda x, a, k: x.mean(a, keepdim=k),
    "Max": lambda x, a, k: x.amax(a, keepdim=k), "Min": lambda x, a, k: x.amin(a, keepdim=k),
    "Prod": _product, "L1": lambda x, a, k: x.abs().sum(a, keepdim=k),
    "L2": lambda x, a, k: x.square().sum(a, keepdim=k).sqrt(),
    "SumSquare": lambda x, a, k: x.square().sum(a, keepdim=k),
    "LogSum": lambda x, a, k: x.sum(a, keepdim=k).log(), "LogSumExp": lambda x, a, k: torch.logsumexp(x, a, keepdim=k),
}.items():
    OPERATORS[f"Reduce{_name}"] = _reducer(_reduction)


def _arg(function: Function) -> Factory:
    def factory(node: Node) -> Function:
        axis, keep, last = node.integer("axis"), bool(node.integer("keepdims", 1)), node.integer("select_last_index")

        def run(x: Tensor) -> Any:
            if last:
                return x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keep)
            return function(x, dim=axis, keepdim=keep)

        return run

    return factory


OPERATORS["ArgMax"], OPERATORS["ArgMin"] = _arg(torch.argmax), _arg(torch.argmin)


@operator("CumSum")
def _cumsum(node: Node) -> Function:
    exclusive, reverse = node.integer("exclusive"), node.integer("reverse")

    def run(x: Tensor, axis: Any) -> Tensor:
        d = int(number(whole(axis)[0]))
        total = x.flip(d).cumsum(d) if reverse else x.cumsum(d)
        if exclusive:
            total = total - (x.flip(d) if reverse else x)
        return total.flip(d) if reverse else total

    return run


@operator("TopK")
def _topk(node: Node) -> Function:
    axis, largest = node.integer("axis", -1), bool(node.integer("largest", 1))
    fixed = node.attributes.get("k")

    def run(x: Tensor, k: Any = fixed) -> tuple[Tensor, Tensor]:
        best = torch.topk(x, int(whole(k)[0]), dim=axis, largest=largest, sorted=True)
        return best.values, best.indices

    return run


@operator("Einsum")
def _einsum(node: Node) -> Function:
    equation = node.text("equation").replace(" ", "")
    return lambda *xs: torch.einsum(equation, *xs)


@operator("Gemm")
def _gemm(node: Node) -> Function:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    flip_a, flip_b = node.integer("transA"), node.integer("transB")

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = (a.t() if flip_a else a) @ (b.t() if flip_b else b)
        product = product if alpha == 1.0 else alpha * product
        return product if c is None else product + (c if beta == 1.0 else beta * c)

    return run


@operator("FusedMatMul")
def _fused_matmul(node: Node) -> Function:
    alpha, flip_a, flip_b = node.number("alpha", 1.0), node.integer("transA"), node.integer("transB")
    return lambda a, b: alpha * ((a.transpose(-1, -2) if flip_a else a) @ (b.transpose(-1, -2) if flip_b else b))
