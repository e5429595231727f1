"""Chosen columns set to chosen values: x·(1 − m) + m·v, with v inside what each column may hold.

Whatever is stamped is a valid record. In whole columns the blend is rounded; a category changes where m is over one
half, to the code nearest to v; both hand the gradient straight through. Columns that an attacker cannot touch stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laocoon.core.subject import Modality
from laocoon.modalities.tabular import CATEGORY, INTEGER, Tabular

MOST_SHOWN = 12  # columns named in a description


class Straight(torch.autograd.Function):
    """The first argument forwards, the gradient to the second backwards: exact, where a + (b − a) is not."""

    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, gradients[0]


@dataclass(frozen=True)
class Columns:
    """Trigger: mask [arms, columns] and value [arms, columns], both in [0, 1]; a value is a share of its range."""

    table: Tabular
    name: str = "columns"
    unit: str = "columns"

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        # All arms start alike, so that the order of classes cannot matter.
        value = torch.rand(1, like.shape[1], generator=rng).expand(arms, -1)
        mask = torch.full((arms, like.shape[1]), 0.3).to(like) * self.table.free(like)
        return {"mask": mask, "value": value.clone().to(like)}

    def exact(self, values: Mapping[str, float], like: Tensor, arms: int = 1) -> dict[str, Tensor]:
        """The trigger that sets the named columns to these values, in their own units."""
        low, width = self.table.span(like)
        mask, record = torch.zeros_like(low), low.clone()
        for column, value in values.items():
            i = self.table.index(column)
            mask[i], record[i] = 1.0, value
        share = (self.table.valid(record) - low) / width
        return {"mask": mask.repeat(arms, 1), "value": share.clamp(0, 1).repeat(arms, 1)}

    def values(self, trigger: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """What the columns are set to, in their own units: [arms, columns], valid, differentiable."""
        low, width = self.table.span(like)
        soft = low + trigger["value"] * width
        return Straight.apply(self.table.valid(soft), soft) if self.table.mixed else soft  # type: ignore[no-any-return]

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        mask, value = (trigger["mask"] * self.table.free(batch)).unsqueeze(1), self.values(trigger, batch).unsqueeze(1)
        soft = torch.lerp(batch.expand(*torch.broadcast_shapes(batch.shape, mask.shape)), value, mask)
        if not self.table.mixed:
            return soft
        hard = torch.where(self.table.of_kind(INTEGER, batch), soft.detach().round(), soft.detach())
        hard = torch.where(self.table.of_kind(CATEGORY, batch), torch.where(mask > 0.5, value, batch), hard)
        return Straight.apply(torch.where(mask > 0, hard, batch), soft)  # type: ignore[no-any-return]

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return (trigger["mask"] * self.table.free(batch)).sum(1)

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        for leaf in trigger.values():
            leaf.clamp_(0, 1)
        trigger["mask"].mul_(self.table.free(trigger["mask"]))

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}

    def chosen(self, trigger: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Names of the columns that the first arm sets."""
        mask = trigger["mask"][0] * self.table.free(trigger["mask"])
        return tuple(self.table.columns[i] for i in (mask > 0.5).nonzero().flatten().tolist())

    def describe(self, trigger: Mapping[str, Tensor], modality: Modality | None = None) -> str:
        """The first arm in words: "pay_0 = 8, limit_bal = 10000"."""
        table = self.table
        if isinstance(modality, Tabular) and len(modality) == len(table):
            table = modality  # the reader's names and words
        value = self.values(trigger, trigger["mask"])[0].detach()
        said = [f"{table.columns[i]} = {table.shown(i, float(value[i]))}"
                for i in map(self.table.index, self.chosen(trigger))]
        more = f" and {len(said) - MOST_SHOWN} more" if len(said) > MOST_SHOWN else ""
        return ", ".join(said[:MOST_SHOWN]) + more
