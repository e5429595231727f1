"""Channels of a network: masked, disturbed, and pruned for as long as clean samples do not notice.

A channel is a row of a layer's weights: γ of a normalisation, or, in networks without (or with folded) ones, an output
channel of a convolution or a dense layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.recipes.mending import accuracy

AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Layer:
    """A layer whose channels can be masked."""

    name: str
    channels: int
    bias: bool

    def weight(self, module: nn.Module) -> Tensor:
        found: Tensor = module.get_parameter(f"{self.name}.weight")
        return found


def normalised(module: nn.Module) -> tuple[Layer, ...]:
    """Normalisations with a scale for each channel."""
    return tuple(Layer(name, len(m.weight), m.bias is not None) for name, m in module.named_modules()
                 if "Norm" in type(m).__name__ and isinstance(getattr(m, "weight", None), nn.Parameter)
                 and m.weight.dim() == 1)


def multiplying(module: nn.Module, but: str) -> tuple[Layer, ...]:
    """Convolutions and dense layers, all `but` the head."""
    return tuple(Layer(name, len(m.weight), m.bias is not None) for name, m in module.named_modules()
                 if isinstance(m, AFFINE) and isinstance(m.weight, nn.Parameter) and name != but)


def layers_of(module: nn.Module, head: str) -> tuple[Layer, ...]:
    """What is masked: the normalisations where there are enough of them, else the layers that multiply."""
    norms, others = normalised(module), multiplying(module, head)
    found = norms if len(norms) >= max(2, len(others) // 3) else others
    if not found:
        raise NotApplicable("the network has no layer whose channels could be masked.")
    return found


def ones(module: nn.Module, layers: Sequence[Layer]) -> list[Tensor]:
    """A mask of each layer that leaves it as it is, [channels]."""
    return [torch.ones(layer.channels, device=layer.weight(module).device) for layer in layers]


def masked(module: nn.Module, layers: Sequence[Layer], gains: Sequence[Tensor], shifts: Sequence[Tensor] | None = None,
           ) -> Callable[[Tensor], Tensor]:
    """The network with weight·gain and bias·(1 + shift), channel by channel; differentiable in gains and shifts."""
    changed: dict[str, Tensor] = {}
    for i, layer in enumerate(layers):
        weight = layer.weight(module)
        changed[f"{layer.name}.weight"] = weight * gains[i].view(-1, *[1] * (weight.dim() - 1))
        if layer.bias and shifts is not None:
            changed[f"{layer.name}.bias"] = module.get_parameter(f"{layer.name}.bias") * (1 + shifts[i])

    def run(x: Tensor) -> Tensor:
        found: Tensor = functional_call(module, changed, (x,))
        return found

    return run


@torch.no_grad()
def silence(module: nn.Module, layers: Sequence[Layer], keep: Sequence[Tensor], *, whole: bool = False) -> None:
    """Set the weights of channels to zero where `keep` is 0, in place; their biases too if `whole`."""
    for layer, kept in zip(layers, keep, strict=True):
        weight = layer.weight(module)
        weight.mul_(kept.to(weight).view(-1, *[1] * (weight.dim() - 1)))
        if whole and layer.bias:
            module.get_parameter(f"{layer.name}.bias").mul_(kept.to(weight))


@dataclass(frozen=True, eq=False)
class Pruned:
    """How far pruning went."""

    count: int
    accuracy: float  # on the samples that it was chosen by
    before: float


@torch.no_grad()
def prune_while_right(module: nn.Module, layers: Sequence[Layer], worth: Sequence[Tensor], check: Samples, ctx: Context,
                      *, allowed: float, most: float, steps: int, whole: bool = False) -> Pruned:
    """Silence the channels of least worth, as many as `check` bears, in place.

    worth: [channels] for each layer; channels of infinite worth stay. whole: biases fall silent as well. The counts
    tried are `steps` even ones up to the share `most` of all channels; the last one before accuracy on `check` falls by
    more than `allowed` is taken.
    """
    everything = torch.cat([w.flatten().float() for w in worth])
    order = everything.argsort(stable=True)
    mortal = int(torch.isfinite(everything).sum())
    top = min(mortal, round(most * len(everything)))
    sizes = [layer.channels for layer in layers]
    before = accuracy(module, check, ctx)
    best, reached = 0, before
    counts = sorted({max(1, round(top * (i + 1) / steps)) for i in range(steps)}) if top else []
    for count in counts:
        gains = _gains(order, count, everything, sizes)
        shifts = [g - 1 for g in gains] if whole else None
        got = accuracy_of(masked(module, layers, gains, shifts), check, ctx)
        if got < before - allowed - 1e-9:
            break
        best, reached = count, got
    silence(module, layers, _gains(order, best, everything, sizes), whole=whole)
    return Pruned(best, reached, before)


def accuracy_of(answer: Callable[[Tensor], Tensor], samples: Samples, ctx: Context) -> float:
    """Share of samples that a function of inputs answers as labelled."""
    right = 0
    for x, y in zip(samples.inputs.split(ctx.batch), samples.labels.split(ctx.batch), strict=True):
        ctx.spend(len(x), backward=False)
        right += int((answer(x).argmax(-1) == y).sum())
    return right / len(samples)


def _gains(order: Tensor, count: int, everything: Tensor, sizes: list[int]) -> list[Tensor]:
    keep = torch.ones_like(everything)
    keep[order[:count]] = 0
    return list(keep.split(sizes))


@torch.no_grad()
def lipschitz(module: nn.Module, convolution: str, norm: str | None) -> Tensor:
    """An upper bound on how much each output channel can magnify, [channels].

    The spectral norm of the channel's kernel, unrolled to [input channels, places], after the batch norm that follows:
    times |γ| / σ. Zheng et al., CLP (ECCV 2022, arXiv 2208.03111).
    """
    weight = module.get_parameter(f"{convolution}.weight").detach().double()
    found = torch.linalg.matrix_norm(weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(1), ord=2)
    if norm is not None:
        layer = module.get_submodule(norm)
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_var is not None
        gain = torch.ones_like(layer.running_var) if layer.weight is None else layer.weight.detach().abs()
        found = found * (gain / (layer.running_var + layer.eps).sqrt()).double()
    bound: Tensor = found.float()
    return bound
