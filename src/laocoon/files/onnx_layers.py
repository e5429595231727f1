"""Layers of torch for the nodes of ONNX whose weights are constants, so that detectors see real modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.files.onnx_node import Node
from laocoon.files.onnx_signal import pads_of, torch_pads, window


class Conv2d(nn.Conv2d):
    """A convolution with other paddings at the two ends, or with paddings that depend on the input size."""

    node: Node

    def forward(self, x: Tensor) -> Tensor:
        pads = pads_of(self.node, tuple(x.shape[2:]), self.kernel_size)  # type: ignore[arg-type]
        return super().forward(functional.pad(x, torch_pads(pads)))


class Operator(nn.Module):
    """An operator with its constants as parameters or buffers: `constants` pairs positions with attribute names."""

    def __init__(self, op: str, function: Callable[..., Any]) -> None:
        super().__init__()
        self.op = op
        self.function = function
        self.constants: list[tuple[int, str]] = []

    def hold(self, position: int, name: str, value: Tensor, *, trainable: bool) -> None:
        if trainable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)
        self.constants = sorted([*self.constants, (position, name)])

    def forward(self, *inputs: Any) -> Any:
        if not self.constants:
            return self.function(*inputs)
        values = list(inputs)
        for position, name in self.constants:
            values.insert(position, getattr(self, name))
        return self.function(*values)

    def extra_repr(self) -> str:
        return self.op


class Activation(Operator):
    """An operator without constants on one input."""

    def forward(self, x: Any) -> Any:
        return self.function(x)


def _fill(layer: nn.Module, values: Mapping[str, Tensor | None]) -> nn.Module:
    """Put tensors in the places of a layer that was made without memory; None leaves a place as it is."""
    for name, value in values.items():
        if value is None:
            continue
        slot = getattr(layer, name)
        if isinstance(slot, nn.Parameter):
            setattr(layer, name, nn.Parameter(value))
        else:
            setattr(layer, name, value)
    return layer


def convolution(node: Node, weight: Tensor, bias: Tensor | None) -> nn.Module | None:
    spatial = weight.dim() - 2
    groups = node.integer("group", 1)
    if spatial not in (1, 2, 3) or groups < 1 or weight.shape[0] % groups or not weight.numel():
        return None
    if node.integers("kernel_shape") not in (None, tuple(weight.shape[2:])):
        return None
    strides, dilations = window(node, spatial)
    fixed = node.text("auto_pad", "NOTSET") in ("NOTSET", "", "VALID")
    pads = pads_of(node, (), tuple(weight.shape[2:])) if fixed else ()
    even = fixed and pads[:spatial] == pads[spatial:] and min(pads, default=0) >= 0
    if not even and spatial != 2:
        return None
    kind: Any = {1: nn.Conv1d, 2: nn.Conv2d if even else Conv2d, 3: nn.Conv3d}[spatial]
    layer = kind(1, 1, 1, bias=bias is not None, device="meta")
    layer.in_channels, layer.out_channels, layer.groups = weight.shape[1] * groups, weight.shape[0], groups
    layer.kernel_size, layer.stride, layer.dilation = tuple(weight.shape[2:]), strides, dilations
    layer.padding = pads[:spatial] if even else (0,) * spatial
    layer._reversed_padding_repeated_twice = [p for p in reversed(layer.padding) for _ in range(2)]
    if not even:
        layer.node = node
    return _fill(layer, {"weight": weight, "bias": bias})


def linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """`weight` is [out, in]."""
    layer = nn.Linear(1, 1, bias=bias is not None, device="meta")
    layer.in_features, layer.out_features = weight.shape[1], weight.shape[0]
    return _fill(layer, {"weight": weight.contiguous(), "bias": bias})


def gemm(node: Node, weight: Tensor, bias: Tensor | None) -> nn.Module | None:
    if node.integer("transA") or weight.dim() != 2:
        return None
    weight = weight if node.integer("transB") else weight.t()
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    weight = weight if alpha == 1.0 else alpha * weight
    if bias is not None:
        if bias.numel() not in (1, weight.shape[0]):
            return None
        bias = (bias if beta == 1.0 else beta * bias).reshape(-1).expand(weight.shape[0]).contiguous()
    return linear(weight, bias)


def batch_norm(node: Node, rank: int, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> nn.Module | None:
    kind: Any = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(rank)
    if (
        kind is None
        or node.integer("training_mode")
        or any(v.shape != mean.shape or v.dim() != 1 for v in (weight, bias, var))
    ):
        return None
    layer: nn.Module = kind(
        1, eps=node.number("epsilon", 1e-5), momentum=1 - node.number("momentum", 0.9), device="meta"
    )
    layer.num_features = mean.numel()  # type: ignore[assignment]
    layer.num_batches_tracked = torch.tensor(0)
    return _fill(layer, {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var})


def layer_norm(node: Node, weight: Tensor, bias: Tensor | None) -> nn.Module | None:
    axis = node.integer("axis", -1)
    if axis >= 0 or -axis != weight.dim() or (bias is not None and bias.shape != weight.shape):
        return None
    layer = nn.LayerNorm(1, eps=node.number("epsilon", 1e-5), bias=bias is not None, device="meta")
    layer.normalized_shape = tuple(weight.shape)
    return _fill(layer, {"weight": weight, "bias": bias})


def layer_for(node: Node, constants: Sequence[Tensor | None], rank: int) -> nn.Module | None:
    """The layer of a node whose inputs after the first are these constants (None: not given); None if there is none.

    `rank` is that of its input, 0 where it is not known.
    """
    given = list(constants)
    if node.op == "Conv" and given and given[0] is not None:
        return convolution(node, given[0], given[1] if len(given) > 1 else None)
    if node.op == "Gemm" and given and given[0] is not None:
        return gemm(node, given[0], given[1] if len(given) > 1 else None)
    if node.op == "MatMul" and given and given[0] is not None and given[0].dim() == 2:
        return linear(given[0].t(), given[1] if len(given) > 1 else None)
    if node.op == "BatchNormalization" and len(given) == 4 and all(g is not None for g in given):
        return batch_norm(node, rank, *given)  # type: ignore[arg-type]
    if node.op == "LayerNormalization" and given and given[0] is not None:
        return layer_norm(node, given[0], given[1] if len(given) > 1 else None)
    return None


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "Relu": nn.ReLU, "Sigmoid": nn.Sigmoid, "Tanh": nn.Tanh, "HardSwish": nn.Hardswish, "Softplus": nn.Softplus,
    "Mish": nn.Mish,
}


def activation_for(node: Node, rank: int) -> nn.Module | None:
    """The layer of torch that does the same as a node without constants, on an input of this rank."""
    make = _ACTIVATIONS.get(node.op)
    if make is not None:
        return make()
    if node.op == "GlobalAveragePool" and rank == 4:
        return nn.AdaptiveAvgPool2d(1)
    kernel: Any = node.integers("kernel_shape")
    if node.op not in ("MaxPool", "AveragePool") or kernel is None or len(kernel) != 2 or len(node.outputs) > 1:
        return None
    if node.integer("ceil_mode") or node.text("auto_pad", "NOTSET") not in ("NOTSET", "", "VALID"):
        return None
    strides, dilations = cast("tuple[Any, Any]", window(node, 2))
    pads: Any = pads_of(node, (), kernel)
    if pads[:2] != pads[2:] or any(2 * p > k for p, k in zip(pads[:2], kernel, strict=True)):
        return None
    if node.op == "MaxPool":
        return nn.MaxPool2d(kernel, strides, pads[:2], dilations)
    return nn.AvgPool2d(kernel, strides, pads[:2], False, bool(node.integer("count_include_pad"))) \
        if dilations == (1, 1) else None
