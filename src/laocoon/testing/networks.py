"""Networks of a few thousand weights, one a modality, whose layers can be renamed and whose classes reordered."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

from laocoon.core.subject import Discrete


def image_network(channels: int, side: int, classes: int) -> nn.Sequential:
    """Two convolutions with batch norm, a dense layer, a head."""
    return nn.Sequential(OrderedDict(
        first=nn.Conv2d(channels, 12, 3, padding=1), first_norm=nn.BatchNorm2d(12), first_act=nn.ReLU(),
        shrink=nn.MaxPool2d(2),
        second=nn.Conv2d(12, 24, 3, padding=1), second_norm=nn.BatchNorm2d(24), second_act=nn.ReLU(),
        shrink_again=nn.MaxPool2d(2), flat=nn.Flatten(),
        dense=nn.Linear(24 * (side // 4) ** 2, 48), dense_act=nn.ReLU(), head=nn.Linear(48, classes)))


def tabular_network(columns: int, classes: int, mean: Tensor, spread: Tensor) -> nn.Sequential:
    """Standardise, two dense layers, a head."""
    return nn.Sequential(OrderedDict(
        scale=Standardise(mean, spread), dense=nn.Linear(columns, 32), dense_act=nn.ReLU(),
        more=nn.Linear(32, 16), more_act=nn.ReLU(), head=nn.Linear(16, classes)))


class Standardise(nn.Module):
    """(x − mean) / spread, column by column."""

    mean: Tensor
    spread: Tensor

    def __init__(self, mean: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.spread


class TextNetwork(Discrete):
    """Embedding, mean and maximum over the words, a dense layer, a head."""

    def __init__(self, vocabulary: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.rest = nn.Sequential(OrderedDict(
            dense=nn.Linear(2 * width, 32), dense_act=nn.ReLU(), head=nn.Linear(32, classes)))

    def embed(self, batch: Tensor) -> Tensor:
        return self.table(batch)

    def classify(self, embedded: Tensor, batch: Tensor) -> Tensor:
        there = (batch != 0).unsqueeze(-1)
        mean = (embedded * there).sum(1) / there.sum(1).clamp_min(1)
        most = embedded.masked_fill(~there, -10.0).amax(1)
        return self.rest(torch.cat([mean, most], 1))


def entry(module: nn.Module) -> nn.Module:
    """The first layer with weights that every pass goes through, lookups apart."""
    return next(m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d))


def renamed(module: nn.Module) -> nn.Module:
    """A copy whose layers have other names, in the same order; it computes the same."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        if isinstance(parent, nn.Sequential):
            children = list(parent._modules.values())
            parent._modules.clear()
            parent._modules.update({f"q{i}z": child for i, child in enumerate(children)})
    return module


def reordered(module: nn.Module, order: Tensor) -> nn.Module:
    """A copy whose class i is class order[i] of the original: the rows of its last linear layer, permuted."""
    module = copy.deepcopy(module)
    head = [m for m in module.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        head.weight.copy_(head.weight[order].clone())
        head.bias.copy_(head.bias[order].clone())
    return module
