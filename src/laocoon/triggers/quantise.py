"""Colour-depth reduction with dithering off (the trigger of BppAttack, CVPR 2022): a fixed, sample-wise transform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quantise:
    """Trigger: levels [arms], the number of grey levels kept. Not differentiable: stamped, never searched."""

    name: str = "quantise"
    unit: str = "grey levels rms"
    rate: float = 0.0  # step of a search, in the units of the leaves
    scale: float = 10.0  # a typical size, in `unit`

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        return {"levels": torch.full((arms,), 5.0).to(like)}

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        steps = (trigger["levels"] - 1)[:, None, None, None, None]
        return (batch * steps).round() / steps

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return (self.stamp(batch, trigger) - batch).pow(2).mean((1, 2, 3, 4)).sqrt() * 255

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        trigger["levels"].clamp_min_(2)

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}

    def shrink(self, trigger: Mapping[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
        return {"levels": 2 + (trigger["levels"] - 2) / factor.clamp_min(1e-3)}

    def largest(self, like: Tensor) -> float:
        return 80.0
