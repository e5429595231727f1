"""A universal perturbation x + δ, clipped: noise, sinusoids, frequency patterns, blended pictures of low strength."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Additive:
    """Trigger: delta [arms, channels, height, width] in [-1, 1]. Size: rms of δ in grey levels (of 255)."""

    name: str = "additive"
    unit: str = "grey levels rms"
    rate: float = 0.01  # step of a search, in the units of the leaves
    scale: float = 10.0  # a typical size, in `unit`

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        return {"delta": (torch.randn(arms, *like.shape[1:], generator=rng) * 0.02).to(like)}

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        return (batch + trigger["delta"].unsqueeze(1)).clamp(0, 1)

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return trigger["delta"].pow(2).mean((1, 2, 3)).add(1e-10).sqrt() * 255

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        trigger["delta"].clamp_(-1, 1)

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}

    def shrink(self, trigger: Mapping[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
        return {"delta": trigger["delta"] * factor[:, None, None, None]}

    def largest(self, like: Tensor) -> float:
        return 80.0
