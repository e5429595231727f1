"""A smooth additive pattern, made of few low frequencies: shades, gradients, blurred pictures blended in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.triggers.cosines import Cosines, drawn


@dataclass(frozen=True)
class Smooth(Cosines):
    """Trigger: amplitude [arms, channels, side, side] of cosine waves. Size: rms in grey levels (of 255).

    The same change of a picture as `Additive`, in a space of a hundred numbers: a search over all pixels ends in noise
    long before it comes upon a gradient.
    """

    side: int = 6  # waves along each axis
    name: str = "smooth"
    unit: str = "grey levels rms"
    rate: float = 0.004  # step of a search, in the units of the leaves
    scale: float = 10.0  # a typical size, in `unit`
    count: int = 200  # examples in a variety
    strength: float = 0.15  # rms of an example, of 1

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        c, h, w = like.shape[1:]
        shape = (arms, c, min(self.side, h), min(self.side, w))
        return {"amplitude": (0.002 * torch.randn(*shape, generator=rng)).to(like)}

    def variety(self, like: Tensor, *, rng: torch.Generator) -> dict[str, Tensor]:
        c, h, w = like.shape[1:]
        amplitude = torch.randn(self.count, c, min(self.side, h), min(self.side, w), generator=rng)
        rms = drawn(amplitude, h, w).pow(2).mean((1, 2, 3), keepdim=True).sqrt()
        return {"amplitude": (self.strength * amplitude / rms).to(like)}

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return drawn(trigger["amplitude"], *batch.shape[-2:]).pow(2).mean((1, 2, 3)).add(1e-10).sqrt() * 255

    def largest(self, like: Tensor) -> float:
        return 80.0
