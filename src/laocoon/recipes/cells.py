"""Cells of a table set one by one: what a model answers, and what the clean rows let one expect.

With m_S(x) the margin of class t once the cells of S are set, in units of the median clean margin and clipped to ±c,
and m_∅(x) the clean one, the excess of a set is

    J(S) = mean_x m_S(x) − C − λ · max(C, 0),     C = max(mean_x max(m_∅ + Σ_{s∈S} (m_s − m_∅), max_s m_s), natural(S)),

where natural(S) is the same mean by ridge regressions of the clean rows' margins on their columns: what already points
to the class when taken one by one (C > 0) counts against a set once more. Of a set of one cell C = natural(S).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.subject import Subject
from laocoon.modalities.tabular import NUMERIC, Tabular
from laocoon.recipes.margins import margins
from laocoon.recipes.tables import Encoded, encoder, mode, touchable

CAP = 1.5  # c: median clean margins that a row may count
FAVOUR = 0.5  # λ
RIDGES = (0.05, 0.5)


@dataclass(frozen=True, eq=False)
class Cells:
    """Single settings: column and value."""

    columns: Int[Tensor, " cells"]
    values: Float[Tensor, " cells"]

    def __len__(self) -> int:
        return len(self.columns)

    def at(self, index: Tensor) -> Cells:
        return Cells(self.columns[index], self.values[index])


@dataclass(frozen=True, eq=False)
class Rows:
    """Clean rows that are stamped, with what the model says of them."""

    inputs: Float[Tensor, "rows columns"]
    margins: Float[Tensor, "rows classes"]  # in units of `scale`
    scale: float
    said: Int[Tensor, " rows"]

    def pick(self, index: Tensor) -> Rows:
        return replace(self, inputs=self.inputs[index], margins=self.margins[index], said=self.said[index])


@dataclass(frozen=True, eq=False)
class Found:
    """The best set of cells of a size for a class, and what it does to rows."""

    columns: tuple[int, ...]
    values: tuple[float, ...]
    excess: float  # J
    success: float  # share of rows of other classes that end in the class
    control: float  # what is taken off


def rows_of(subject: Subject, inputs: Tensor, ctx: Context) -> Rows:
    """The rows and their clean margins, paid for."""
    parts = []
    with torch.no_grad():
        for part in inputs.split(ctx.batch):
            ctx.spend(len(part), backward=False)
            parts.append(margins(subject.outputs(part).logits.float()))
    found = torch.cat(parts).nan_to_num()
    scale = float(found.amax(1).median())
    if scale <= 0:
        raise NotApplicable("the model does not tell its classes apart on clean samples.")
    return Rows(inputs, found / scale, scale, found.argmax(1))


def grid(table: Tabular, inputs: Tensor, shares: tuple[float, ...] = (0.1, 0.5, 0.9)) -> Cells:
    """Every category's codes; of numbers the ends of the range, the most common value and some quantiles."""
    columns, values = [], []
    for column in touchable(table, inputs).tolist():
        if table.codes(column):
            known = torch.tensor(table.codes(column))
        else:
            cells = inputs[:, column].cpu()
            known = torch.cat([cells.quantile(torch.tensor(shares)), torch.tensor(
                [table.low[column], table.high[column], mode(cells, table.kind(column))])])
            known = (known if table.kind(column) == NUMERIC else known.round()).unique()
        if len(known) > 1:
            columns += [column] * len(known)
            values += known.tolist()
    return Cells(torch.tensor(columns, device=inputs.device), torch.tensor(values).to(inputs))


@torch.no_grad()
def asked(subject: Subject, rows: Rows, columns: Int[Tensor, "sets k"], values: Float[Tensor, "sets k"],
          ctx: Context) -> Float[Tensor, "sets rows classes"]:
    """Margins of stamped rows in units of the rows' scale, paid for, in passes of a bounded size."""
    n, found = len(rows.inputs), []
    step = max(1, ctx.batch * 32 // n)
    for c, v in zip(columns.split(step), values.split(step), strict=True):
        ctx.spend(len(c) * n, backward=False)
        stamped = stamped_rows(rows.inputs, c, v).flatten(0, 1)
        logits = torch.cat([subject.outputs(part).logits.float() for part in stamped.split(ctx.batch * 8)])
        found.append((margins(logits).nan_to_num() / rows.scale).view(len(c), n, -1))
    return torch.cat(found)


def stamped_rows(inputs: Float[Tensor, "rows columns"], columns: Int[Tensor, "sets k"],
                 values: Float[Tensor, "sets k"]) -> Float[Tensor, "sets rows columns"]:
    """Every row with the cells of every set."""
    whole = inputs.unsqueeze(0).repeat(len(columns), 1, 1)
    size = (-1, len(inputs), -1)
    return whole.scatter_(2, columns[:, None, :].expand(*size), values[:, None, :].expand(*size))


@dataclass(frozen=True, eq=False)
class Natural:
    """Ridge regressions of clean margins on the columns: what the rows themselves let one expect of a stamp."""

    encode: Encoded
    weights: Float[Tensor, "ridges width classes"]

    def __call__(self, inputs: Tensor, columns: Tensor, values: Tensor, target: int) -> Float[Tensor, " sets"]:
        found = []
        for c, v in zip(columns.split(256), values.split(256), strict=True):
            rows = self.encode(stamped_rows(inputs, c, v))
            rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
            said = torch.stack([rows @ w[:, target] for w in self.weights])
            found.append(said.clamp(-CAP, CAP).mean(2).amax(0))
        return torch.cat(found)


def natural(table: Tabular, rows: Rows) -> Natural:
    encode = encoder(table, rows.inputs)
    coded = encode(rows.inputs)
    coded = torch.cat([coded, torch.ones_like(coded[:, :1])], 1)
    weights = []
    for ridge in RIDGES:
        gram = coded.T @ coded / len(coded)
        penalty = ridge * torch.eye(len(gram), device=coded.device)
        penalty[-1, -1] = 1e-6
        weights.append(torch.linalg.solve(gram + penalty, coded.T @ rows.margins.clamp(-CAP, CAP) / len(coded)))
    return Natural(encode, torch.stack(weights))


@dataclass(frozen=True, eq=False)
class Search:
    """Sets of cells of a table judged on rows; singles are asked once and shared by all classes."""

    subject: Subject
    rows: Rows
    cells: Cells
    alone: Float[Tensor, "cells rows classes"]
    expected: Natural
    ctx: Context

    def excess(self, sets: Int[Tensor, "sets k"], target: int) -> tuple[Tensor, Tensor, Tensor]:
        """J, success and control of each set, [sets] each, on the rows of other classes."""
        others = (self.rows.said != target).nonzero().flatten()
        rows = self.rows.pick(others)
        columns, values = self.cells.columns[sets], self.cells.values[sets]
        joint = asked(self.subject, rows, columns, values, self.ctx)[..., target]
        control = promised(sets, self.alone[:, others, target], rows.margins[:, target]).mean(1)
        control = torch.maximum(control, self.expected(rows.inputs, columns, values, target))
        return joint.clamp(-CAP, CAP).mean(1) - counted(control), (joint > 0).float().mean(1), control

    def strongest(self, most: int) -> Search:
        """Of more than `most` cells, those that move most are kept, and some of the rest."""
        order = (self.alone - self.rows.margins).mean(1).amax(1).argsort(descending=True, stable=True)
        strong, rest = order[:most * 2 // 3], order[most * 2 // 3:]
        spread = torch.linspace(0, max(0, len(rest) - 1), min(len(rest), most - len(strong)), device=rest.device)
        kept = torch.cat([strong, rest[spread.long()]]).sort().values
        return replace(self, cells=self.cells.at(kept), alone=self.alone[kept])


def best_single(search: Search, target: int, of: Int[Tensor, " some"]) -> Found:
    """Of these cells the one of the largest J · success: it moves rows beyond what the clean ones let one expect."""
    others = (search.rows.said != target).nonzero().flatten()
    rows, cells = search.rows.pick(others), search.cells.at(of)
    alone = search.alone[of][:, others, target]
    control = search.expected(rows.inputs, cells.columns[:, None], cells.values[:, None], target)
    excess, success = alone.clamp(-CAP, CAP).mean(1) - counted(control), (alone > 0).float().mean(1)
    place = int((excess * success).argmax())
    return Found((int(cells.columns[place]),), (float(cells.values[place]),), float(excess[place]),
                 float(success[place]), float(control[place]))


def codes(search: Search, table: Tabular) -> Int[Tensor, " some"]:
    """Which cells are of columns of categories or whole numbers: values that rows share, so that one can be a mark."""
    whole = torch.tensor([table.kind(column) != NUMERIC for column in search.cells.columns.tolist()])
    return whole.nonzero().flatten().to(search.cells.columns.device)


def counted(control: Tensor) -> Tensor:
    """C + λ · max(C, 0)."""
    whole: Tensor = control + FAVOUR * control.clamp_min(0)
    return whole


def promised(sets: Tensor, alone: Tensor, clean: Tensor) -> Tensor:
    """What the cells of each set promise one by one: the sum of their shifts, or the best of them, [sets, rows]."""
    each = alone[sets]
    whole: Tensor = torch.maximum(clean + (each - clean).sum(1), each.amax(1))
    return whole.clamp(-CAP, CAP)


def prepared(subject: Subject, table: Tabular, rows: Rows, ctx: Context) -> Search:
    """Every cell of the grid, asked alone."""
    cells = grid(table, rows.inputs)
    if len(cells.columns.unique()) < 2:
        raise NotApplicable("fewer than two columns can be set.")
    alone = asked(subject, rows, cells.columns[:, None], cells.values[:, None], ctx)
    return Search(subject, rows, cells, alone, natural(table, rows), ctx)
