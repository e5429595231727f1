"""Which clean samples a method works on: the same ones whatever order they came in."""

from __future__ import annotations

import torch
from torch import Tensor

from laocoon.core.cases import Samples


def settled(samples: Samples, device: torch.device) -> Samples:
    """The samples on the device, in an order that depends on their content alone, not on labels or position."""
    flat = samples.inputs.flatten(1).double().cpu()
    key = torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = (flat @ key).argsort(stable=True).to(samples.inputs.device)
    return Samples(samples.inputs[order].to(device), samples.labels[order].to(device), samples.labelled)


def spread_over(labels: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Indices of about `count` samples, evenly over the labels present, in random order within each."""
    order = torch.randperm(len(labels), generator=rng).to(labels.device)
    shuffled = labels[order]
    rank = torch.zeros(len(labels), dtype=torch.long, device=labels.device)
    for t in shuffled.unique():
        own = shuffled == t
        rank[own] = torch.arange(int(own.sum()), device=labels.device)
    return order[rank.argsort(stable=True)[:count]]
