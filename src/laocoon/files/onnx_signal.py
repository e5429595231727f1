"""Operators of ONNX for convolution, pooling, normalisation and attention; entries of the table of `onnx_operators`.

Convolutions and normalisations whose weights are constants become layers (`onnx_layers`); the functions here serve
the rest, for instance weights that the graph computes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.errors import BrokenFile
from laocoon.files.onnx_node import Node
from laocoon.files.onnx_operators import OPERATORS, Function, operator, within

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_MAX: dict[int, Any] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def window(node: Node, spatial: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides and dilations of a node."""
    one = (1,) * spatial
    return node.integers("strides") or one, node.integers("dilations") or one


def pads_of(node: Node, size: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Begin paddings, then end paddings, with auto_pad worked out for this input size."""
    spatial, auto = len(kernel), node.text("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = node.integers("pads") or (0,) * (2 * spatial)
        if len(pads) != 2 * spatial:
            raise BrokenFile(
                f"node {node.name!r} has {len(pads)} paddings for {spatial} axes.", "The file is malformed."
            )
        return pads
    if auto == "VALID":
        return (0,) * (2 * spatial)
    strides, dilations = window(node, spatial)
    total = [max((math.ceil(s / st) - 1) * st + (k - 1) * d + 1 - s, 0)
             for s, st, k, d in zip(size, strides, kernel, dilations, strict=True)]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (*small, *large) if auto == "SAME_UPPER" else (*large, *small)


def torch_pads(pads: tuple[int, ...]) -> list[int]:
    """ONNX paddings in the order of torch.nn.functional.pad."""
    half = len(pads) // 2
    return list(itertools.chain(*((pads[i], pads[i + half]) for i in reversed(range(half)))))


@operator("Conv")
def _conv(node: Node) -> Function:
    groups = node.integer("group", 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        spatial = weight.dim() - 2
        pads = pads_of(node, tuple(x.shape[2:]), tuple(weight.shape[2:]))
        strides, dilations = window(node, spatial)
        if pads[:spatial] == pads[spatial:]:
            return _CONV[spatial](x, weight, bias, strides, pads[:spatial], dilations, groups)
        return _CONV[spatial](functional.pad(x, torch_pads(pads)), weight, bias, strides, 0, dilations, groups)

    return run


@operator("ConvTranspose")
def _conv_transpose(node: Node) -> Function:
    groups = node.integer("group", 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        kernel = tuple(weight.shape[2:])
        spatial = len(kernel)
        strides, dilations = window(node, spatial)
        extra = node.integers("output_padding") or (0,) * spatial
        size = tuple(x.shape[2:])
        full = [(s - 1) * st + (k - 1) * d + 1 + e
                for s, st, k, d, e in zip(size, strides, kernel, dilations, extra, strict=True)]
        within([x.shape[0], weight.shape[1] * groups, *full])
        wanted, auto = node.integers("output_shape"), node.text("auto_pad", "NOTSET")
        if wanted is None and auto.startswith("SAME"):
            wanted = tuple(s * st for s, st in zip(size, strides, strict=True))
        if wanted is not None:
            total = [max(f - w, 0) for f, w in zip(full, wanted, strict=True)]
            begin = [t - t // 2 if auto == "SAME_LOWER" else t // 2 for t in total]
            pads = (*begin, *(t - b for t, b in zip(total, begin, strict=True)))
        else:
            pads = pads_of(node, size, kernel)
        if pads[:spatial] == pads[spatial:]:
            return _TRANSPOSED[spatial](x, weight, bias, strides, pads[:spatial], extra, groups, dilations)
        whole = _TRANSPOSED[spatial](x, weight, bias, strides, 0, extra, groups, dilations)
        return functional.pad(whole, [-p for p in torch_pads(pads)])

    return run


def _ceiled(node: Node, size: tuple[int, ...], kernel: tuple[int, ...], pads: tuple[int, ...]) -> list[int]:
    """Extra end padding with which flooring gives the windows that ceil_mode asks for."""
    spatial = len(kernel)
    strides, dilations = window(node, spatial)
    extra = []
    for i in range(spatial):
        span = size[i] + pads[i] + pads[i + spatial] - dilations[i] * (kernel[i] - 1) - 1
        windows = math.ceil(span / strides[i]) + 1
        if (windows - 1) * strides[i] >= size[i] + pads[i]:  # a window may not start in the end padding
            windows -= 1
        extra.append(max((windows - 1) * strides[i] - span, 0))
    return extra


@operator("MaxPool")
def _max_pool(node: Node) -> Function:
    kernel = node.integers("kernel_shape") or ()
    spatial = len(kernel)
    strides, dilations = window(node, spatial)
    indices = len(node.outputs) > 1 and bool(node.outputs[1])

    def run(x: Tensor) -> Any:
        size = tuple(x.shape[2:])
        pads = pads_of(node, size, kernel)
        if node.integer("ceil_mode"):
            extra = _ceiled(node, size, kernel, pads)
            pads = (*pads[:spatial], *(p + e for p, e in zip(pads[spatial:], extra, strict=True)))
        symmetric = pads[:spatial] == pads[spatial:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False))
        if not symmetric:
            within([*x.shape[:2], *(s + pads[i] + pads[i + spatial] for i, s in enumerate(size))])
            x = functional.pad(x, torch_pads(pads), value=-math.inf)
        return _MAX[spatial](x, kernel, strides, pads[:spatial] if symmetric else 0, dilations,
                             return_indices=indices)

    return run


@operator("AveragePool")
def _average_pool(node: Node) -> Function:
    kernel = node.integers("kernel_shape") or ()
    spatial, counted = len(kernel), bool(node.integer("count_include_pad"))
    strides, dilations = window(node, spatial)
    if any(d != 1 for d in dilations):
        raise BrokenFile(f"node {node.name!r} averages with dilations {dilations}.", "Export without dilated pooling.")

    def run(x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        pads = pads_of(node, size, kernel)
        extra = _ceiled(node, size, kernel, pads) if node.integer("ceil_mode") else [0] * spatial
        symmetric = pads[:spatial] == pads[spatial:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False))
        if symmetric and not any(extra):
            return _AVERAGE[spatial](x, kernel, strides, pads[:spatial], False, counted)
        within([*x.shape[:2], *(s + pads[i] + pads[i + spatial] + extra[i] for i, s in enumerate(size))])
        ones = torch.ones_like(x[:1, :1])
        outer = torch_pads((*(0,) * spatial, *extra))
        weight = functional.pad(functional.pad(ones, torch_pads(pads), value=float(counted)), outer)
        total = functional.pad(functional.pad(x, torch_pads(pads)), outer)
        return _AVERAGE[spatial](total, kernel, strides) / _AVERAGE[spatial](weight, kernel, strides)

    return run


@operator("LpPool")
def _lp_pool(node: Node) -> Function:
    kernel, power = node.integers("kernel_shape") or (), node.integer("p", 2)
    spatial = len(kernel)
    strides, _ = window(node, spatial)

    def run(x: Tensor) -> Tensor:
        padded = functional.pad(x, torch_pads(pads_of(node, tuple(x.shape[2:]), kernel)))
        return (_AVERAGE[spatial](padded.abs() ** power, kernel, strides) * math.prod(kernel)) ** (1 / power)

    return run


@operator("GlobalAveragePool")
def _global_average(node: Node) -> Function:
    return lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def _global_max(node: Node) -> Function:
    return lambda x: x.amax(tuple(range(2, x.dim())), keepdim=True)


@operator("BatchNormalization")
def _batch_norm(node: Node) -> Function:
    epsilon = node.number("epsilon", 1e-5)
    return lambda x, weight, bias, mean, var: functional.batch_norm(x, mean, var, weight, bias, False, 0.0, epsilon)


@operator("InstanceNormalization")
def _instance_norm(node: Node) -> Function:
    epsilon = node.number("epsilon", 1e-5)
    return lambda x, weight, bias: functional.instance_norm(x, weight=weight, bias=bias, eps=epsilon)


@operator("LayerNormalization")
def _layer_norm(node: Node) -> Function:
    axis, epsilon = node.integer("axis", -1), node.number("epsilon", 1e-5)
    return lambda x, weight, bias=None: functional.layer_norm(x, x.shape[axis:], weight.expand(x.shape[axis:]),
                                                              bias, epsilon)


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def _rms_norm(node: Node) -> Function:
    axis, epsilon = node.integer("axis", -1), node.number("epsilon", 1e-5)
    return lambda x, weight: functional.rms_norm(x, x.shape[axis:], weight.expand(x.shape[axis:]), epsilon)


@operator("GroupNormalization")
def _group_norm(node: Node) -> Function:
    groups, epsilon = node.integer("num_groups", 1), node.number("epsilon", 1e-5)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if weight.numel() == x.shape[1]:
            return functional.group_norm(x, groups, weight, bias, epsilon)
        repeats = x.shape[1] // groups  # before opset 21: one weight for each group
        return functional.group_norm(x, groups, weight.repeat_interleave(repeats), bias.repeat_interleave(repeats),
                                     epsilon)

    return run


@operator("MeanVarianceNormalization")
def _standardise(node: Node) -> Function:
    axes = node.integers("axes") or (0, 2, 3)
    return lambda x: (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True).sqrt() + 1e-9)


@operator("LpNormalization")
def _normalise(node: Node) -> Function:
    power, axis = node.integer("p", 2), node.integer("axis", -1)
    return lambda x: x / torch.linalg.vector_norm(x, power, dim=axis, keepdim=True)


@operator("LRN")
def _local_response(node: Node) -> Function:
    size, alpha = node.integer("size", 1), node.number("alpha", 1e-4)
    beta, bias = node.number("beta", 0.75), node.number("bias", 1.0)

    def run(x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        squares = functional.pad(x.square().reshape(n, 1, c, -1), [0, 0, (size - 1) // 2, size // 2])
        mean = functional.avg_pool2d(squares, (size, 1), stride=1).reshape(x.shape)
        return x / (bias + alpha * mean) ** beta

    return run


@operator("Attention")
def _attention(node: Node) -> Function:
    causal, scale = bool(node.integer("is_causal")), node.attributes.get("scale")
    q_heads, k_heads = node.integer("q_num_heads"), node.integer("kv_num_heads")

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        flat = q.dim() == 3
        if flat:
            q, k, v = (t.unflatten(-1, (h, -1)).transpose(1, 2) for t, h in ((q, q_heads), (k, k_heads), (v, k_heads)))
        result = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale,
                                                         enable_gqa=q.shape[1] != k.shape[1])
        return result.transpose(1, 2).flatten(2) if flat else result

    return run


__all__ = ["OPERATORS"]
