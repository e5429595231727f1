"""One plane wave over the whole picture, of any direction, length and phase: the sinusoid of SIG (ICIP 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Wave:
    """Trigger: cycles [arms, 2] across and down the picture, phase [arms] in half turns, amplitude [arms, channels]
    in shares of `strength`. Size: rms in grey levels (of 255).

    Five numbers, or six in colour, where `Spectral` has a thousand: so few that a wave which convinces a network was
    hardly made for it. No wave is stronger than `strength`.
    """

    name: str = "wave"
    unit: str = "grey levels rms"
    rate: float = 0.03  # step of a search, in the units of the leaves
    scale: float = 10.0  # a typical size, in `unit`
    strength: float = 0.12  # largest amplitude, of 1
    most: int = 10  # cycles along an axis, of the examples in a variety

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        return {"cycles": (3 * torch.randn(arms, 2, generator=rng)).to(like),
                "phase": (2 * torch.rand(arms, generator=rng)).to(like),
                "amplitude": (0.1 * torch.randn(arms, like.shape[1], generator=rng)).to(like)}

    def variety(self, like: Tensor, *, rng: torch.Generator) -> dict[str, Tensor]:
        """Waves of every direction with whole numbers of cycles, in four phases; as strong as can be."""
        most = max(1, min(self.most, like.shape[-2] // 3, like.shape[-1] // 3))
        pairs = [(u, v) for u in range(most + 1) for v in range(-most, most + 1)
                 if (u or v > 0) and u + abs(v) <= most + 1]
        cycles = torch.tensor(pairs, dtype=torch.float32).repeat_interleave(4, 0)
        phase = torch.tensor([0.0, 0.5, 1.0, 1.5]).repeat(len(pairs))
        return {"cycles": cycles.to(like), "phase": phase.to(like),
                "amplitude": torch.ones(len(cycles), like.shape[1]).to(like)}

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        h, w = batch.shape[-2:]
        u, v = (trigger["cycles"][:, i, None, None] for i in range(2))
        ys, xs = torch.arange(h).to(batch)[:, None] / h, torch.arange(w).to(batch)[None] / w
        wave = (math.pi * (2 * (u * xs + v * ys) + trigger["phase"][:, None, None])).sin()
        drawn = self.strength * trigger["amplitude"][:, :, None, None] * wave[:, None]
        return (batch + drawn[:, None]).clamp(0, 1)

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return 255 * self.strength * (trigger["amplitude"].pow(2).mean(1) / 2 + 1e-10).sqrt()

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        trigger["amplitude"].clamp_(-1, 1)
        trigger["cycles"].clamp_(-16, 16)

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}

    def shrink(self, trigger: Mapping[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
        return {**trigger, "amplitude": trigger["amplitude"] * factor[:, None]}

    def largest(self, like: Tensor) -> float:
        return 255 * self.strength
