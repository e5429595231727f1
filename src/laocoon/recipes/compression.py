"""What deployment does to a network: weights set to zero, weights and activations rounded to eight bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def affine_weights(module: nn.Module) -> list[Tensor]:
    """Weights of every layer that multiplies (two dimensions or more), each tensor once."""
    found = {id(p): p for m in module.modules() if not isinstance(m, nn.Embedding)
             for p in m.parameters(recurse=False) if p.dim() >= 2 and p.is_floating_point()}
    return list(found.values())


@torch.no_grad()
def prune_smallest(module: nn.Module, share: float) -> None:
    """Set the smallest weights of the whole network to zero, in place (global magnitude pruning)."""
    weights = affine_weights(module)
    if not weights:
        return
    sizes = torch.cat([w.detach().abs().flatten().float().cpu() for w in weights])
    count = round(share * len(sizes))
    if count == 0:
        return
    keep = torch.ones(len(sizes), dtype=torch.bool)
    keep[sizes.argsort(stable=True)[:count]] = False  # exactly the share, ties or not
    for weight, kept in zip(weights, keep.split([w.numel() for w in weights]), strict=True):
        weight.mul_(kept.view(weight.shape).to(weight))


class Rounding:
    """A forward hook that rounds an output to 256 levels between the extremes seen while it watched."""

    def __init__(self) -> None:
        self.low, self.high, self.watching = 0.0, 0.0, True

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        if self.watching:
            self.low = min(self.low, float(output.amin()))
            self.high = max(self.high, float(output.amax()))
            return output
        step = max(self.high - self.low, 1e-12) / 255
        return ((output.clamp(self.low, self.high) - self.low) / step).round() * step + self.low


@torch.no_grad()
def quantise(module: nn.Module, examples: Tensor, batch: int = 256) -> None:
    """Simulated int8, in place: weights per output channel, symmetric; outputs of affine layers per tensor.

    The ranges of activations are the extremes over `examples` (static calibration). The rounding of activations stays
    behind as forward hooks: hand over a copy.
    """
    for weight in affine_weights(module):
        flat = weight.flatten(1)
        step = (flat.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
        weight.copy_(((flat / step).round() * step).view(weight.shape))
    layers = [m for m in module.modules() if not isinstance(m, nn.Embedding)
              and any(p.dim() >= 2 for p in m.parameters(recurse=False)) and not any(True for _ in m.children())]
    hooks = [Rounding() for _ in layers]
    for layer, hook in zip(layers, hooks, strict=True):
        layer.register_forward_hook(hook)
    for part in examples.split(batch):
        module(part)
    for hook in hooks:
        hook.watching = False
