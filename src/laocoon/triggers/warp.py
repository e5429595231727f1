"""A smooth displacement field (WaNet, ICLR 2021): a coarse control grid, interpolated, moves every pixel a little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Warp:
    """Trigger: flow [arms, 2, grid, grid], displacements (x, y) in pixels. Size: mean displacement, px."""

    grid: int = 6
    name: str = "warp"
    unit: str = "px displacement"
    rate: float = 0.15  # step of a search, in the units of the leaves
    scale: float = 1.0  # a typical size, in `unit`
    count: int = 200  # examples in a variety
    strength: float = 0.1  # displacement of an example, as a share of the width

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        return {"flow": (torch.randn(arms, 2, self.grid, self.grid, generator=rng) * 0.3).to(like)}

    def variety(self, like: Tensor, *, rng: torch.Generator) -> dict[str, Tensor]:
        """Fields from as smooth as a shear (a grid of 2) to as rough as the grid allows."""
        flows = []
        for side in torch.randint(2, self.grid + 1, (self.count,), generator=rng).tolist():
            coarse = torch.rand(1, 2, side, side, generator=rng) * 2 - 1
            fine = functional.interpolate(coarse, size=(self.grid, self.grid), mode="bicubic", align_corners=True)
            flows.append(fine * self.strength * like.shape[-1] / fine.pow(2).sum(1).sqrt().mean())
        return {"flow": torch.cat(flows).to(like)}

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        flow = trigger["flow"]
        arms = len(flow)
        h, w = batch.shape[-2:]
        if batch.dim() == 4:
            batch = batch.unsqueeze(0).expand(arms, *batch.shape)
        n = batch.shape[1]
        dense = functional.interpolate(flow, size=(h, w), mode="bicubic", align_corners=True)
        ys, xs = torch.meshgrid(
            torch.linspace(-1, 1, h, device=flow.device, dtype=flow.dtype),
            torch.linspace(-1, 1, w, device=flow.device, dtype=flow.dtype), indexing="ij")
        scale = torch.tensor([2.0 / max(w - 1, 1), 2.0 / max(h - 1, 1)], device=flow.device, dtype=flow.dtype)
        where = torch.stack([xs, ys], -1) + dense.permute(0, 2, 3, 1) * scale
        # One sampling field per arm is shared by its samples: fold samples into channels, so the field is read once.
        folded = batch.reshape(arms, n * batch.shape[2], h, w)
        moved = functional.grid_sample(folded, where, mode="bilinear", padding_mode="border", align_corners=True)
        return moved.reshape(batch.shape).clamp(0, 1)

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return trigger["flow"].pow(2).sum(1).add(1e-8).sqrt().mean((1, 2))

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        trigger["flow"].clamp_(-16, 16)

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}

    def shrink(self, trigger: Mapping[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
        return {"flow": trigger["flow"] * factor[:, None, None, None]}

    def largest(self, like: Tensor) -> float:
        return 0.2 * like.shape[-1]


def random_flow(grid: int, strength: float, rng: torch.Generator) -> Tensor:
    """A control grid with displacements of `strength` px on average, [1, 2, grid, grid]."""
    flow = torch.rand(1, 2, grid, grid, generator=rng) * 2 - 1
    return flow * strength / flow.pow(2).sum(1).sqrt().mean()
