"""Tables: canonical batches are float32 [n, columns] in the columns' own units, categories as codes.

What a record may hold is told by the data (`Samples.modality`): a model's file knows how many columns it wants and at
most their names. A trigger stays a valid record: inside the ranges, whole where a column is whole, one of the codes
where it is a category, and never in a column that an attacker cannot touch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from laocoon.core.errors import InputError, NotApplicable

NUMERIC, INTEGER, CATEGORY = "numeric", "integer", "category"
FEW = 12  # whole numbers of at most so many values are codes of categories
SEEN = 4  # times that each of them is met on average, or the table is too short to tell


@dataclass(frozen=True)
class Tabular:
    """The columns of one model, each with what it may hold."""

    columns: tuple[str, ...]
    low: tuple[float, ...]  # of the range of each column; infinite where no data told it yet
    high: tuple[float, ...]
    kinds: tuple[str, ...] = ()  # of each column: NUMERIC, INTEGER or CATEGORY; empty: all are numeric
    allowed: tuple[tuple[float, ...], ...] = ()  # of each column its codes, ascending; none for numbers
    words: tuple[tuple[str, ...], ...] = ()  # of each column what its codes stand for, where the data use words
    fixed: tuple[str, ...] = ()  # columns that an attacker cannot touch
    name: str = "tabular"

    def __post_init__(self) -> None:
        count = len(self.columns)
        for field in ("low", "high", "kinds", "allowed", "words"):
            size = len(getattr(self, field))
            if size != count and (size or field in ("low", "high")):
                raise InputError(f"{field} has {size} entries for {count} columns.", "Give one for each column.")
        unknown = set(self.fixed) - set(self.columns)
        if unknown:
            raise InputError(f"the fixed column {min(unknown)!r} is no column of the table.",
                             f"Columns: {', '.join(self.columns[:12])}.")
        for i, kind in enumerate(self.kinds):
            if kind not in (NUMERIC, INTEGER, CATEGORY) or (kind == CATEGORY and not self.codes(i)):
                raise InputError(f"column {self.columns[i]!r} is of kind {kind!r} without codes.",
                                 f"Kinds are {NUMERIC}, {INTEGER} and, with codes, {CATEGORY}.")

    @staticmethod
    def of(columns: Sequence[str], inputs: Tensor, kinds: Sequence[str] = (), fixed: Sequence[str] = (),
           words: Sequence[Sequence[str]] = ()) -> Tabular:
        """Ranges and codes as seen in data at hand; without `kinds` every column is numeric."""
        allowed = tuple(tuple(inputs[:, i].unique().tolist()) if kind == CATEGORY else ()
                        for i, kind in enumerate(kinds))
        return Tabular(tuple(columns), tuple(inputs.amin(0).tolist()), tuple(inputs.amax(0).tolist()), tuple(kinds),
                       allowed, tuple(tuple(w) for w in words), tuple(fixed))

    @staticmethod
    def unknown(columns: Sequence[str]) -> Tabular:
        """Of a model before any data were read."""
        count = len(columns)
        return Tabular(tuple(columns), (-math.inf,) * count, (math.inf,) * count)

    def untouched(self, fixed: Sequence[str]) -> Tabular:
        """The same table, in which an attacker cannot touch these columns."""
        return replace(self, fixed=tuple(fixed))

    def __len__(self) -> int:
        return len(self.columns)

    def kind(self, column: int) -> str:
        return self.kinds[column] if self.kinds else NUMERIC

    def codes(self, column: int) -> tuple[float, ...]:
        """The codes of a category, ascending; none for numbers."""
        return self.allowed[column] if self.allowed else ()

    def index(self, column: str) -> int:
        if column not in self.columns:
            raise InputError(f"there is no column {column!r}.", f"Columns: {', '.join(self.columns[:12])}.")
        return self.columns.index(column)

    def of_kind(self, kind: str, like: Tensor) -> Tensor:
        """Which columns are of a kind, [columns], true or false."""
        return torch.tensor([self.kind(i) == kind for i in range(len(self))], device=like.device)

    def free(self, like: Tensor) -> Tensor:
        """1 for each column that an attacker can set, else 0; [columns]."""
        return torch.tensor([float(c not in self.fixed) for c in self.columns]).to(like)

    @cached_property
    def mixed(self) -> bool:
        """Whether any column is whole or a category."""
        return any(kind != NUMERIC for kind in self.kinds)

    def span(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest values and widths of the ranges, each [columns], widths never zero."""
        if not all(math.isfinite(v) for v in (*self.low, *self.high)):
            raise NotApplicable("the ranges of the columns are not known. Pass data with --data.")
        low = torch.tensor(self.low).to(like)
        return low, (torch.tensor(self.high).to(like) - low).clamp_min(1e-12)

    def valid(self, records: Tensor) -> Tensor:
        """The nearest valid records: [..., columns], clamped, rounded, set to the nearest code. No gradient."""
        low, _ = self.span(records)
        found = torch.minimum(torch.maximum(records.detach(), low), torch.tensor(self.high).to(records))
        if not self.mixed:
            return found
        found = torch.where(self.of_kind(INTEGER, records), found.round(), found)
        for i in range(len(self)):
            if self.kind(i) == CATEGORY:
                codes = torch.tensor(self.codes(i)).to(records)
                found[..., i] = codes[(found[..., i, None] - codes).abs().argmin(-1)]
        return found

    def is_valid(self, records: Tensor) -> Tensor:
        """Whether each of [..., columns] could stand in the table."""
        _, width = self.span(records)
        return ((records - self.valid(records)).abs() <= 1e-5 * width + 1e-6 * records.abs()).all(-1)

    def shown(self, column: int, value: float) -> str:
        """A cell as a person would write it."""
        if self.kind(column) == CATEGORY and self.words and self.words[column]:
            codes = self.codes(column)
            nearest = min(range(len(codes)), key=lambda k: abs(codes[k] - value))
            return self.words[column][nearest]
        if self.kind(column) != NUMERIC or (float(value).is_integer() and abs(value) < 1e7):
            return f"{value:.0f}" if float(value).is_integer() else f"{value:g}"
        return f"{value:.4g}"

    def record(self, row: Tensor) -> dict[str, str]:
        """One row, column by column, in words."""
        return {name: self.shown(i, float(row[i])) for i, name in enumerate(self.columns)}

    def facts(self) -> list[dict[str, Any]]:
        """The schema as plain data."""
        return [{"column": c, "kind": self.kind(i), "low": self.low[i], "high": self.high[i],
                 "values": list(self.words[i] if self.words and self.words[i] else self.codes(i)),
                 "fixed": c in self.fixed} for i, c in enumerate(self.columns)]


def kind_of(values: Tensor) -> str:
    """What the numbers of one column look like: few whole ones are codes, many are integers."""
    if not bool((values == values.round()).all()):
        return NUMERIC
    count = len(values.unique())
    return CATEGORY if count <= FEW and count * SEEN <= len(values) else INTEGER
