"""An additive pattern of few frequencies, wherever they lie: sinusoids (SIG), frequency-domain triggers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.triggers.cosines import Cosines, analysed


@dataclass(frozen=True)
class Spectral(Cosines):
    """Trigger: amplitude [arms, channels, side, side] of cosine waves. Size: sum of the amplitudes, in grey levels.

    Sparse in frequencies as a patch is sparse in pixels. Pictures with more than `side` pixels along an axis are
    searched up to side/2 cycles.
    """

    side: int = 32  # waves along each axis
    name: str = "spectral"
    unit: str = "grey levels, summed over frequencies"
    rate: float = 0.00125  # step of a search, in the units of the leaves
    scale: float = 160.0  # a typical size, in `unit`
    cycles: int = 10  # along an axis, of the examples in a variety
    strength: float = 0.12  # amplitude of an example, of 1

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        c, h, w = like.shape[1:]
        shape = (arms, c, min(self.side, h), min(self.side, w))
        return {"amplitude": (0.00125 * torch.randn(*shape, generator=rng)).to(like)}

    def variety(self, like: Tensor, *, rng: torch.Generator) -> dict[str, Tensor]:
        """Plane waves of every direction up to `cycles`, in four phases; the same in all channels."""
        c, h, w = like.shape[1:]
        ys, xs = torch.arange(h)[:, None] / h, torch.arange(w)[None] / w
        most = max(1, min(self.cycles, h // 3, w // 3))
        pairs = [(u, v) for u in range(most + 1) for v in range(-most, most + 1)
                 if (u or v > 0) and u + abs(v) <= most + 1]
        amplitude = torch.stack([
            analysed(torch.sin(2 * math.pi * (u * xs + v * ys) + phase), min(self.side, h), min(self.side, w))
            for u, v in pairs for phase in (0.0, 0.5 * math.pi, math.pi, 1.5 * math.pi)])
        return {"amplitude": (self.strength * amplitude).unsqueeze(1).expand(-1, c, -1, -1).contiguous().to(like)}

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return trigger["amplitude"].abs().sum((1, 2, 3)) * 255 + 1e-3

    def largest(self, like: Tensor) -> float:
        return 8000.0
