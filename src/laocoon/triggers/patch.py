"""Patch and mask: x·(1 − m) + m·p. BadNets stamps it; Neural Cleanse (S&P 2019) searches it; blending is flat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Patch:
    """Trigger: mask [arms, 1, height, width] and pattern [arms, channels, height, width], both in [0, 1]."""

    name: str = "patch"
    unit: str = "px"
    rate: float = 0.1  # step of a search, in the units of the leaves
    scale: float = 100.0  # a typical size, in `unit`

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        _, c, h, w = like.shape
        return {
            "mask": (torch.rand(arms, 1, h, w, generator=rng) * 0.1 + 0.05).to(like),
            "pattern": torch.rand(arms, c, h, w, generator=rng).to(like),
        }

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        mask, pattern = trigger["mask"].unsqueeze(1), trigger["pattern"].unsqueeze(1)
        return batch * (1 - mask) + mask * pattern  # two passes over the batch instead of three, and less to undo

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return trigger["mask"].sum((1, 2, 3))

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        for leaf in trigger.values():
            leaf.clamp_(0, 1)

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}

    def shrink(self, trigger: Mapping[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
        return {"mask": trigger["mask"] * factor[:, None, None, None], "pattern": trigger["pattern"]}

    def largest(self, like: Tensor) -> float:
        return 0.4 * like.shape[-1] * like.shape[-2]
