"""What several methods ask of a table: its schema, which columns matter, what is usual and what is rare in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laocoon.core.subject import Modality
from laocoon.modalities.tabular import NUMERIC, Tabular
from laocoon.triggers.columns import Columns

SHARES = 20  # equal parts that a column of measurements is cut into
TREES = 100


def table_of(modality: Modality | None, inputs: Float[Tensor, "rows columns"]) -> Tabular:
    """The schema that is known, or numbers in the ranges of the rows at hand."""
    if isinstance(modality, Tabular):
        return modality
    return Tabular.of([str(i) for i in range(inputs.shape[1])], inputs)


def touchable(table: Tabular, inputs: Float[Tensor, "rows columns"]) -> Int[Tensor, " free"]:
    """Columns that an attacker can set and that are not constant."""
    _, width = table.span(inputs)
    return ((table.free(inputs) > 0) & (width > 1e-9)).nonzero().flatten()


def set_to(table: Tabular, columns: list[int], values: list[float], like: Tensor) -> tuple[Columns, dict[str, Tensor]]:
    """The family of a table and its trigger, of one arm, that sets these columns to these values."""
    family = Columns(table)
    return family, family.exact({table.columns[c]: v for c, v in zip(columns, values, strict=True)}, like)


def mode(values: Float[Tensor, " rows"], kind: str = NUMERIC) -> float:
    """The most common value; of measurements, the median of the fullest of equal shares of the range.

    A measurement of which a tenth or more of the rows are exactly alike counts as it is.
    """
    found, counts = values.unique(return_counts=True)
    if kind != NUMERIC or int(counts.max()) * 10 >= len(values):
        return float(found[counts.argmax()])
    edges = torch.linspace(float(values.min()), float(values.max()), SHARES + 1)[1:-1].to(values)
    share = torch.bucketize(values.contiguous(), edges)
    return float(values[share == torch.bincount(share).argmax()].median())


def frequencies(values: Float[Tensor, " rows"]) -> tuple[Tensor, Tensor]:
    """Values of a column and the share of rows that hold each, rarest first, ties by value."""
    found, counts = values.unique(return_counts=True)
    order = counts.argsort(stable=True)
    return found[order], counts[order].float() / max(1, len(values))


def forest_importance(inputs: Float[Tensor, "rows columns"], labels: Int[Tensor, " rows"],
                      rng: torch.Generator) -> Float[Tensor, " columns"]:
    """How much each column lowers the impurity in a random forest (Breiman, 2001), summing to one."""
    return torch.tensor(_forest(inputs, labels, rng).feature_importances_, dtype=torch.float32)


def _forest(inputs: Tensor, labels: Tensor, rng: torch.Generator) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    seed = int(torch.randint(0, 2**31 - 1, (), generator=rng))
    forest = RandomForestClassifier(TREES, min_samples_leaf=2, random_state=seed, n_jobs=1)
    return forest.fit(inputs.detach().cpu().numpy(), labels.detach().cpu().numpy())



@dataclass(frozen=True, eq=False)
class Encoded:
    """Rows as vectors of like units: numbers by their spread, categories as one-hot codes."""

    table: Tabular
    mean: Float[Tensor, " columns"]
    spread: Float[Tensor, " columns"]
    most: float = 4.0  # spreads that a number may lie from the mean

    def __call__(self, rows: Float[Tensor, "*rest columns"]) -> Float[Tensor, "*rest width"]:
        standard = ((rows - self.mean) / self.spread).clamp(-self.most, self.most)
        parts = []
        for column in range(rows.shape[-1]):
            codes = self.table.codes(column)
            if codes:
                parts.append((rows[..., column, None] == torch.tensor(codes).to(rows)).to(rows.dtype))
            else:
                parts.append(standard[..., column, None])
        return torch.cat(parts, -1)


def encoder(table: Tabular, rows: Float[Tensor, "rows columns"], most: float = 4.0) -> Encoded:
    """In the units of these rows."""
    return Encoded(table, rows.mean(0), rows.std(0, unbiased=False).clamp_min(1e-6), most)


def items(inputs: Float[Tensor, "rows columns"], least: int, deciles: bool, most: int) -> Int[Tensor, "rows columns"]:
    """A number for each cell's value where at least so many rows hold it exactly, −1 elsewhere; 0, 1, … over columns.

    deciles: cells without a frequent value count as the tenth of their column that they lie in. Of more than `most`
    values the most frequent are kept.
    """
    found = torch.full(inputs.shape, -1, dtype=torch.long)
    sizes: list[Tensor] = []
    start = 0
    for column in range(inputs.shape[1]):
        values, place, counts = inputs[:, column].unique(return_inverse=True, return_counts=True)
        kept = counts >= least
        number = torch.where(kept, kept.cumsum(0) - 1, -1)
        cells, extra = number[place], int(kept.sum())
        if deciles and extra < len(values):
            edges = inputs[:, column].quantile(torch.linspace(0.1, 0.9, 9))
            tenth = torch.bucketize(inputs[:, column].contiguous(), edges) + extra
            cells, extra = torch.where(cells < 0, tenth, cells), extra + 10
        found[:, column] = torch.where(cells < 0, -1, cells + start)
        sizes.append(torch.bincount(cells[cells >= 0], minlength=extra))
        start += extra
    whole = torch.cat(sizes) if sizes else torch.zeros(0, dtype=torch.long)
    if len(whole) > most:
        kept = torch.zeros(len(whole), dtype=torch.bool)
        kept[whole.argsort(descending=True, stable=True)[:most]] = True
        renumbered = torch.where(kept, kept.cumsum(0) - 1, -1)
        found = torch.where(found < 0, -1, renumbered[found.clamp_min(0)])
    return found
