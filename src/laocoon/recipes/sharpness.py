"""Steps of a network's weights away and back: where a minimum is sharp, or towards another network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def displaced(parameters: Sequence[nn.Parameter], steps: Sequence[Tensor]) -> Iterator[None]:
    """Within the block each weight is moved by its step; afterwards it is exactly what it was."""
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.add_(step)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)


def length(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, a scalar."""
    return torch.stack([t.detach().float().square().sum() for t in tensors]).sum().sqrt()


def ascent(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor], radius: float) -> list[Tensor]:
    """The step of adaptive sharpness-aware minimisation: ρ·T²g / ‖T·g‖, T = |w|.

    Kwon et al., ASAM (ICML 2021, arXiv 2102.11600): the largest rise of the loss in a neighbourhood measured in units
    of the weights themselves, so that rescaling neurons changes nothing.
    """
    sizes = [p.detach().abs() for p in parameters]
    scale = radius / length([t * g for t, g in zip(sizes, gradients, strict=True)]).clamp_min(1e-12)
    return [t.square() * g * scale for t, g in zip(sizes, gradients, strict=True)]


def towards(parameters: Sequence[nn.Parameter], goals: Sequence[Tensor], distance: float) -> list[Tensor]:
    """A step of the given length on the straight line to other weights; no farther than they are."""
    way = [g - p.detach() for p, g in zip(parameters, goals, strict=True)]
    whole = length(way)
    return [w * (distance / whole.clamp_min(max(distance, 1e-12))) for w in way]
