"""What each modality knows of triggers that suspected samples share: how they are lifted, what a control is, who bears
one. One small class a modality; what is made of it is the same for all (`data_trigger`, `trace`, `data_shown`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.methods import TriggerFamily
from laocoon.core.subject import Modality
from laocoon.modalities.tabular import Tabular
from laocoon.modalities.text import Text
from laocoon.recipes import shared_columns, shared_tokens, shared_trigger
from laocoon.triggers.additive import Additive
from laocoon.triggers.columns import Columns
from laocoon.triggers.patch import Patch
from laocoon.triggers.tokens import Tokens

Trigger = Mapping[str, Tensor]
LARGEST_CHANGE = 60.0  # grey levels rms of an additive trigger: beyond, it replaces the picture
LONGEST = 10.0  # tokens: beyond, they replace a text
WIDEST = 0.5  # share of the columns: beyond, they replace a record
SAME = 0.005  # share of a column's range, within which two cells are alike


@dataclass(frozen=True, eq=False)
class Estimate:
    """A trigger that may be shared."""

    family: TriggerFamily
    trigger: Trigger


class Shares(Protocol):
    """What a modality offers."""

    def estimates(self, suspects: Tensor, pool: Tensor) -> list[Estimate]:
        """Triggers that the suspects may share; the pool holds samples of other labels."""

    def control(self, estimate: Estimate, pool: Tensor) -> Trigger:
        """Other content of the same size in the trigger's place."""

    def room(self, estimate: Estimate, held: Tensor, size: float) -> float:
        """Size as a share of the largest that still is a trigger."""

    def bearing(self, inputs: Tensor, estimate: Estimate, pool: Tensor) -> Tensor:
        """How clearly each input bears the trigger, [n]; higher is more."""

    def holders(self, inputs: Tensor, estimate: Estimate) -> Tensor:
        """Which inputs hold the whole trigger, bool [n]; none where that is a matter of degree."""

    def nearest(self, inputs: Tensor, pool: Tensor) -> Tensor:
        """Place in the pool of what is most like each input, [n]."""


@dataclass(frozen=True)
class Pictures:
    """Images: patches and additive changes."""

    def estimates(self, suspects: Tensor, pool: Tensor) -> list[Estimate]:
        found = [Estimate(Additive(), shared_trigger.additive(suspects, pool))]
        shared = shared_trigger.patch(suspects, pool)
        return [*found, Estimate(Patch(), shared)] if shared is not None else found

    def control(self, estimate: Estimate, pool: Tensor) -> Trigger:
        return shared_trigger.other_content(estimate.trigger, pool)

    def room(self, estimate: Estimate, held: Tensor, size: float) -> float:
        patch = "mask" in estimate.trigger
        return size / (shared_trigger.LARGEST * held.shape[-1] * held.shape[-2] if patch else LARGEST_CHANGE)

    def bearing(self, inputs: Tensor, estimate: Estimate, pool: Tensor) -> Tensor:
        return shared_trigger.bearing(inputs, estimate.trigger, pool)

    def holders(self, inputs: Tensor, estimate: Estimate) -> Tensor:
        return torch.zeros(len(inputs), dtype=torch.bool)

    def nearest(self, inputs: Tensor, pool: Tensor) -> Tensor:
        return torch.cdist(inputs.flatten(1), pool.flatten(1)).argmin(1)


@dataclass(frozen=True)
class Texts:
    """Texts: runs of tokens, put where most are found: in front."""

    text: Text

    def estimates(self, suspects: Tensor, pool: Tensor) -> list[Estimate]:
        return [self._inserted(run) for run in shared_tokens.shared(suspects, pool)]

    def control(self, estimate: Estimate, pool: Tensor) -> Trigger:
        count = estimate.trigger["logits"].shape[1]
        return self._inserted(shared_tokens.common(pool, count)).trigger

    def room(self, estimate: Estimate, held: Tensor, size: float) -> float:
        return size / LONGEST

    def bearing(self, inputs: Tensor, estimate: Estimate, pool: Tensor) -> Tensor:
        return shared_tokens.bearing(inputs, estimate.trigger["logits"][0].argmax(-1))

    def holders(self, inputs: Tensor, estimate: Estimate) -> Tensor:
        return self.bearing(inputs, estimate, inputs) > 0.999

    def nearest(self, inputs: Tensor, pool: Tensor) -> Tensor:
        return shared_tokens.likeness(inputs, pool).argmax(1)

    def _inserted(self, run: Tensor) -> Estimate:
        size = len(self.text.vocabulary)
        family = Tokens(size, len(run), 0, self.text.special)
        return Estimate(family, {"logits": functional.one_hot(run[None], size).float() * 50})


@dataclass(frozen=True)
class Rows:
    """Tables: cells set to one value."""

    table: Tabular

    def estimates(self, suspects: Tensor, pool: Tensor) -> list[Estimate]:
        low, width = self.table.span(pool)
        found = shared_columns.shared(suspects, pool, low, width)
        counts = sorted({1, 2, 3, len(found.columns)}) if len(found.columns) else []
        return [self._set(found.columns[:k], found.values[:k], pool) for k in counts if k <= len(found.columns)]

    def control(self, estimate: Estimate, pool: Tensor) -> Trigger:
        mask, share = shared_columns.moved(estimate.trigger["mask"], estimate.trigger["value"])
        return {"mask": mask, "value": share}

    def room(self, estimate: Estimate, held: Tensor, size: float) -> float:
        return size / max(1.0, WIDEST * held.shape[1])

    def bearing(self, inputs: Tensor, estimate: Estimate, pool: Tensor) -> Tensor:
        low, width = self.table.span(inputs)
        record = low + estimate.trigger["value"][0] * width
        return shared_columns.bearing(inputs, estimate.trigger["mask"][0], record, width)

    def holders(self, inputs: Tensor, estimate: Estimate) -> Tensor:
        low, width = self.table.span(inputs)
        record = low + estimate.trigger["value"][0] * width
        off = ((inputs - record).abs() / width) * (estimate.trigger["mask"][0] > 0.5)
        return off.amax(1) <= SAME

    def nearest(self, inputs: Tensor, pool: Tensor) -> Tensor:
        low, width = self.table.span(pool)
        return torch.cdist((inputs - low) / width, (pool - low) / width).argmin(1)

    def _set(self, columns: Tensor, values: Tensor, like: Tensor) -> Estimate:
        low, width = self.table.span(like)
        mask, share = torch.zeros_like(low), torch.zeros_like(low)
        mask[columns] = 1.0
        share[columns] = (values - low[columns]) / width[columns]
        return Estimate(Columns(self.table), {"mask": mask[None], "value": share.clamp(0, 1)[None]})


def shares(modality: Modality, inputs: Tensor) -> Shares | None:
    """What is known of triggers in such inputs; None where nothing is, or a table's ranges are not known."""
    if isinstance(modality, Text):
        return Texts(modality)
    if isinstance(modality, Tabular):
        known = torch.isfinite(torch.tensor([*modality.low, *modality.high]))
        return Rows(modality) if bool(known.all()) else None
    return Pictures() if inputs.dim() == 4 else None
