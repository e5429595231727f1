"""Weights made by hand: the filter of one neuron that best tells stamped inputs from clean ones.

Hong, Carlini and Kurakin, Handcrafted backdoors in deep neural networks (NeurIPS 2022), sections 4.2 and 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST = 1024  # inputs of a filter up to which their covariance is estimated whole


@dataclass(frozen=True, eq=False)
class Filter:
    """One row of weights; `low` and `high` are what it answers to clean inputs at most and to stamped ones at least."""

    row: Tensor  # the shape of one output channel's weights, of norm 1
    low: float
    high: float
    usual: float  # what it answers to stamped inputs as a rule

    @property
    def gap(self) -> float:
        """How far apart the two are, beside what clean answers differ by."""
        return self.high - self.low


def windows(inputs: Tensor, layer: nn.Module, channel: int) -> Tensor:
    """[samples, weights of one output channel, places]: what one output channel of a layer reads."""
    if not isinstance(layer, nn.Conv2d):
        return inputs.unsqueeze(-1)
    width = layer.in_channels // layer.groups
    group = channel // (layer.out_channels // layer.groups)
    own = inputs[:, group * width:(group + 1) * width]
    assert not isinstance(layer.padding, str)
    return functional.unfold(own, layer.kernel_size, layer.dilation, layer.padding, layer.stride)


def separating(clean: Tensor, stamped: Tensor, shape: torch.Size, *, shrink: float = 0.05) -> Filter:
    """Linear discriminant of stamped windows, where the trigger shows most, against clean windows of all places.

    clean, stamped: [samples, weights, places], of the same samples. w = (Σ + shrink · mean variance)⁻¹ (μ_s − μ_c).
    """
    place = int((stamped - clean).mean(0).norm(dim=0).argmax())
    there = stamped[:, :, place]
    every = clean.transpose(0, 1).flatten(1)
    some = every[:, torch.linspace(0, every.shape[1] - 1, min(20_000, every.shape[1])).long()]
    middle = some.mean(1)
    away, spread = there.mean(0) - middle, some - middle[:, None]
    variance = spread.square().mean(1)
    ridge = shrink * (variance.mean() + away.square().mean()) + 1e-8
    if len(middle) <= MOST:
        scatter = spread @ spread.t() / spread.shape[1] + ridge * torch.eye(len(middle))
        row = torch.linalg.solve(scatter, away)
    else:
        row = away / (variance + ridge)
    row = row / row.norm().clamp_min(1e-12)
    answers = torch.einsum("d,ndp->np", row, stamped).amax(1)
    low = torch.einsum("d,ndp->np", row, clean).amax(1)
    return Filter(row.reshape(shape), float(low.quantile(0.99)), float(answers.quantile(0.05)), float(answers.median()))
