"""Tables: canonical batches are float32 [n, columns] in the columns' own units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tabular:
    """The columns of one model, each with the range of valid values: a trigger stays inside it."""

    columns: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    name: str = "tabular"

    @staticmethod
    def of(columns: tuple[str, ...], inputs: Tensor) -> Tabular:
        """Ranges as seen in data at hand."""
        return Tabular(columns, tuple(inputs.amin(0).tolist()), tuple(inputs.amax(0).tolist()))

    def span(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest values and widths of the ranges, each [columns], widths never zero."""
        low = torch.tensor(self.low).to(like)
        return low, (torch.tensor(self.high).to(like) - low).clamp_min(1e-12)
