"""Chosen columns set to chosen values: x·(1 − m) + m·v, with v inside each column's valid range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.modalities.tabular import Tabular


@dataclass(frozen=True)
class Columns:
    """Trigger: mask [arms, columns] and value [arms, columns], both in [0, 1]; a value is a share of its range."""

    table: Tabular
    name: str = "columns"
    unit: str = "columns"

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        # All arms start alike, so that the order of classes cannot matter.
        value = torch.rand(1, like.shape[1], generator=rng).expand(arms, -1)
        return {"mask": torch.full((arms, like.shape[1]), 0.3).to(like), "value": value.clone().to(like)}

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        low, width = self.table.span(batch)
        mask, value = trigger["mask"].unsqueeze(1), (low + trigger["value"] * width).unsqueeze(1)
        return batch + mask * (value - batch)

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return trigger["mask"].sum(1)

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        for leaf in trigger.values():
            leaf.clamp_(0, 1)

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}
