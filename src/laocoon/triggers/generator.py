"""A sample-specific trigger: x + ε·tanh(g(x)) with a two-layer convolution g (after LIRA and input-aware attacks)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Generator:
    """Trigger: the weights of g, one network per arm, run as one grouped convolution. Size: rms change, grey levels."""

    width: int = 8
    kernel: int = 5
    bound: float = 0.2
    name: str = "generator"
    unit: str = "grey levels rms"
    rate: float = 0.02  # step of a search, in the units of the leaves
    scale: float = 10.0  # a typical size, in `unit`

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        c, k, w = like.shape[1], self.kernel, self.width
        return {
            "first": (torch.randn(arms, w, c, k, k, generator=rng) / (c * k * k) ** 0.5).to(like),
            "bias": torch.zeros(arms, w).to(like),
            "second": (torch.randn(arms, c, w, k, k, generator=rng) * 0.3 / (w * k * k) ** 0.5).to(like),
            "shift": torch.zeros(arms, c).to(like),
        }

    def change(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        arms = len(trigger["bias"])
        if batch.dim() == 4:
            batch = batch.unsqueeze(0).expand(arms, *batch.shape)
        _, n, c, h, w = batch.shape
        folded = batch.transpose(0, 1).reshape(n, arms * c, h, w) - 0.5
        pad = self.kernel // 2
        hidden = functional.conv2d(folded, trigger["first"].flatten(0, 1), trigger["bias"].flatten(), padding=pad,
                                   groups=arms)
        out = functional.conv2d(functional.elu(hidden), trigger["second"].flatten(0, 1), trigger["shift"].flatten(),
                                padding=pad, groups=arms)
        return self.bound * torch.tanh(out).reshape(n, arms, c, h, w).transpose(0, 1)

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        return (batch + self.change(batch, trigger)).clamp(0, 1)

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return self.change(batch, trigger).pow(2).mean((1, 2, 3, 4)).add(1e-10).sqrt() * 255

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        for leaf in trigger.values():
            leaf.clamp_(-10, 10)

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}

    def shrink(self, trigger: Mapping[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
        scaled = dict(trigger)
        scaled["second"] = trigger["second"] * factor[:, None, None, None, None]
        scaled["shift"] = trigger["shift"] * factor[:, None]
        return scaled

    def largest(self, like: Tensor) -> float:
        return 0.9 * self.bound * 255
