"""A photo filter: one colour matrix, offset and curve for the whole image (after ABS's Instagram filters, CCS 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tone:
    """Trigger: matrix [arms, c, c], offset [arms, c], curve [arms, c] (log gamma). Size: rms change, grey levels."""

    name: str = "tone"
    unit: str = "grey levels rms"
    rate: float = 0.03  # step of a search, in the units of the leaves
    scale: float = 20.0  # a typical size, in `unit`
    count: int = 200  # examples in a variety

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        c = like.shape[1]
        return {
            "matrix": (torch.eye(c).repeat(arms, 1, 1) + 0.02 * torch.randn(arms, c, c, generator=rng)).to(like),
            "offset": (0.02 * torch.randn(arms, c, generator=rng)).to(like),
            "curve": (0.02 * torch.randn(arms, c, generator=rng)).to(like),
        }

    def variety(self, like: Tensor, *, rng: torch.Generator) -> dict[str, Tensor]:
        """Filters as strong as those of photo applications; one in ten leaves the channels apart."""
        n, c = self.count, like.shape[1]
        mixed = (torch.rand(n, 1, 1, generator=rng) < 0.9).float()
        return {"matrix": (torch.eye(c) + 0.35 * mixed * torch.randn(n, c, c, generator=rng)).to(like),
                "offset": (0.2 * torch.randn(n, c, generator=rng)).to(like),
                "curve": (0.4 * torch.randn(n, c, generator=rng)).to(like)}

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        if batch.dim() == 4:
            batch = batch.unsqueeze(0)
        gamma = trigger["curve"].exp()[:, None, :, None, None]
        curved = batch.clamp_min(1e-3).pow(gamma)
        mixed = torch.einsum("adc,anchw->andhw", trigger["matrix"], curved.expand(len(gamma), *curved.shape[1:]))
        return (mixed + trigger["offset"][:, None, :, None, None]).clamp(0, 1)

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return (self.stamp(batch, trigger) - batch).pow(2).mean((1, 2, 3, 4)).add(1e-10).sqrt() * 255

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        trigger["matrix"].clamp_(-2, 3)
        trigger["offset"].clamp_(-1, 1)
        trigger["curve"].clamp_(-2, 2)

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}

    def shrink(self, trigger: Mapping[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
        f = factor[:, None]
        still = torch.eye(trigger["matrix"].shape[-1]).to(trigger["matrix"])
        return {"matrix": still + f[..., None] * (trigger["matrix"] - still), "offset": f * trigger["offset"],
                "curve": f * trigger["curve"]}

    def largest(self, like: Tensor) -> float:
        return 80.0
