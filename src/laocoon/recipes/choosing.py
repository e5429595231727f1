"""Which clean samples a method works on: the same ones whatever order they came in."""

from __future__ import annotations

import torch
from torch import Tensor

from laocoon.core.cases import Samples


def settled(samples: Samples, device: torch.device) -> Samples:
    """The samples on the device, in an order that depends on their content alone, not on labels or position."""
    order = by_content(samples.inputs).to(samples.inputs.device)
    return Samples(samples.inputs[order].to(device), samples.labels[order].to(device), samples.labelled)


def by_content(inputs: Tensor) -> Tensor:
    """Indices of samples [n, …] in an order that depends on their content alone, on the processor."""
    if not len(inputs):
        return torch.zeros(0, dtype=torch.long)
    key = torch.randn(inputs[0].numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = torch.cat([part.flatten(1).double().cpu() @ key for part in inputs.split(4096)])
    return places.argsort(stable=True)


def spread_over(labels: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Indices of about `count` samples, evenly over the labels present, in random order within each."""
    order = torch.randperm(len(labels), generator=rng).to(labels.device)
    shuffled = labels[order]
    rank = torch.zeros(len(labels), dtype=torch.long, device=labels.device)
    for t in shuffled.unique():
        own = shuffled == t
        rank[own] = torch.arange(int(own.sum()), device=labels.device)
    return order[rank.argsort(stable=True)[:count]]
