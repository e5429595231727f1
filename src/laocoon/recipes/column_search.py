"""Search for values of one to three columns that move rows to a class by more than these columns do one by one.

In a table real columns carry real evidence: enough of it, at the ends of its range, moves a clean model too. A trigger
is learnt as a conjunction of values that say little for the class, or for another one, when each stands alone. With
m_S(x) the margin of class t once the cells of S are set, in units of the median clean margin and clipped to ±c, and
m_∅(x) the clean one, the excess of a set is

    J(S) = mean_x m_S(x) − C − λ · max(C, 0),     C = max(mean_x max(m_∅ + Σ_{s∈S} (m_s − m_∅), max_s m_s), natural(S)),

where natural(S) is the same mean by ridge regressions of the clean rows' margins on their columns: what already points
to the class when taken one by one (C > 0) counts against a set once more. The search is exhaustive over pairs of a grid
of cells, greedy from pairs to triples, and asks for outputs alone.
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
RESCORED = 60  # pairs of a class that are judged on all rows
BEAM = 24  # pairs that are extended, of all classes together
STARTS = 4  # triples of each of two classes whose cells are exchanged
ROUNDS = 3  # of exchange


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
        stamped = _stamped(rows.inputs, c, v).flatten(0, 1)
        logits = torch.cat([subject.outputs(part).logits.float() for part in stamped.split(ctx.batch * 8)])
        found.append((margins(logits).nan_to_num() / rows.scale).view(len(c), n, -1))
    return torch.cat(found)


def _stamped(inputs: Tensor, columns: Tensor, values: Tensor) -> Tensor:
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
            rows = self.encode(_stamped(inputs, c, v))
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
        control = _alone(sets, self.alone[:, others, target], rows.margins[:, target]).mean(1)
        control = torch.maximum(control, self.expected(rows.inputs, columns, values, target))
        return joint.clamp(-CAP, CAP).mean(1) - counted(control), (joint > 0).float().mean(1), control


def best_single(search: Search, target: int) -> Found:
    """The cell that moves rows farthest beyond what the clean rows let one expect of it."""
    others = (search.rows.said != target).nonzero().flatten()
    rows, cells = search.rows.pick(others), search.cells
    alone = search.alone[:, others, target]
    control = search.expected(rows.inputs, cells.columns[:, None], cells.values[:, None], target)
    excess = alone.clamp(-CAP, CAP).mean(1) - counted(control)
    place = int(excess.argmax())
    return Found((int(cells.columns[place]),), (float(cells.values[place]),), float(excess[place]),
                 float((alone[place] > 0).float().mean()), float(control[place]))


def counted(control: Tensor) -> Tensor:
    """C + λ · max(C, 0)."""
    whole: Tensor = control + FAVOUR * control.clamp_min(0)
    return whole


def _alone(sets: Tensor, alone: Tensor, clean: Tensor) -> Tensor:
    """What the cells of each set promise one by one: the sum of their shifts, or the best of them, [sets, rows]."""
    each = alone[sets]
    promised: Tensor = torch.maximum(clean + (each - clean).sum(1), each.amax(1))
    return promised.clamp(-CAP, CAP)


def prepared(subject: Subject, table: Tabular, rows: Rows, most: int, ctx: Context) -> Search:
    """Every cell of the grid asked alone; of more than `most`, those that move most are kept, and some of the rest."""
    cells = grid(table, rows.inputs)
    if len(cells.columns.unique()) < 2:
        raise NotApplicable("fewer than two columns can be set.")
    alone = asked(subject, rows, cells.columns[:, None], cells.values[:, None], ctx)
    order = (alone - rows.margins).mean(1).amax(1).argsort(descending=True, stable=True)
    strong, rest = order[:most * 2 // 3], order[most * 2 // 3:]
    some = rest[torch.linspace(0, max(0, len(rest) - 1), min(len(rest), most - len(strong)), device=rest.device).long()]
    kept = torch.cat([strong, some]).sort().values
    return Search(subject, rows, cells.at(kept), alone[kept], natural(table, rows), ctx)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Towards one class."""

    sets: Int[Tensor, "sets 2"]  # the most promising, best first
    roughness: float  # root mean square, over all pairs, of what two cells do beyond their sum


def best_pairs(search: Search, few: int) -> dict[int, Pairs]:
    """The most promising pairs of cells towards each class, each judged on all rows.

    few: rows that each pair is first tried on, the same for all classes.
    """
    cells, rows, classes = search.cells, search.rows, search.rows.margins.shape[1]
    a, b = torch.combinations(torch.arange(len(cells), device=rows.inputs.device), 2).T
    apart = cells.columns[a] != cells.columns[b]
    pairs = torch.stack([a[apart], b[apart]], 1)
    tried = _balanced(rows.said, few)
    part = rows.pick(tried)
    joint = asked(search.subject, part, cells.columns[pairs], cells.values[pairs], search.ctx).clamp(-CAP, CAP)
    found = {}
    for target in range(classes):
        others = (part.said != target).nonzero().flatten()
        if not len(others):
            continue
        control = _alone(pairs, search.alone[:, tried[others], target], part.margins[others, target])
        beyond = (joint[:, others, target] - control).mean(1)
        promise = joint[:, others, target].mean(1) - counted(control.mean(1))
        first = promise.argsort(descending=True, stable=True)[:RESCORED]
        excess, success, _ = search.excess(pairs[first], target)
        order = (excess + 0.3 * success).argsort(descending=True, stable=True)
        found[target] = Pairs(pairs[first[order]], float(beyond.clamp_min(0).square().mean().sqrt()))
    return found


def judged(search: Search, columns: Int[Tensor, " k"], values: Float[Tensor, " k"], target: int) -> Found:
    """A set of any values, on the grid or off it: its cells are asked one by one, then together."""
    cells = Cells(columns, values)
    alone = asked(search.subject, search.rows, columns[:, None], values[:, None], search.ctx)
    own = replace(search, cells=cells, alone=alone)
    return best_set(own, torch.arange(len(columns), device=columns.device)[None], target)[1]


def extended(search: Search, starts: Int[Tensor, "sets k"], target: int) -> Int[Tensor, "more k_and_one"]:
    """Each start with each further cell of another column, every set once."""
    found = []
    everyone = torch.arange(len(search.cells), device=starts.device)
    for start in starts:
        taken = (search.cells.columns[:, None] == search.cells.columns[start]).any(1)
        others = everyone[~taken]
        found.append(torch.cat([start.expand(len(others), -1), others[:, None]], 1))
    whole: Tensor = torch.cat(found).sort(1).values.unique(dim=0)  # type: ignore[no-untyped-call]
    return whole


def exchanged(search: Search, start: Int[Tensor, " k"]) -> Int[Tensor, "sets k"]:
    """The set with one of its cells replaced by any other, the columns still distinct; itself first."""
    found = [start[None]]
    everyone = torch.arange(len(search.cells), device=start.device)
    for place in range(len(start)):
        rest = torch.cat([start[:place], start[place + 1:]])
        free = everyone[~(search.cells.columns[:, None] == search.cells.columns[rest]).any(1)]
        found.append(torch.cat([rest.expand(len(free), -1), free[:, None]], 1))
    return torch.cat(found)


def best_set(search: Search, sets: Int[Tensor, "sets k"], target: int) -> tuple[Int[Tensor, " k"], Found]:
    """The set of the largest excess."""
    return ranked(search, sets, target, 1)[0]


def ranked(search: Search, sets: Int[Tensor, "sets k"], target: int, count: int) -> list[tuple[Tensor, Found]]:
    """The sets of the largest excess, best first."""
    excess, success, control = search.excess(sets, target)
    found = []
    for place in excess.argsort(descending=True, stable=True)[:count].tolist():
        best = sets[place]
        found.append((best, Found(tuple(search.cells.columns[best].tolist()), tuple(search.cells.values[best].tolist()),
                                  float(excess[place]), float(success[place]), float(control[place]))))
    return found


@dataclass(frozen=True, eq=False)
class Conjunction:
    """The best pair and the best triple of cells for a class."""

    two: Found
    three: Found

    @property
    def score(self) -> float:
        """Σ J · success."""
        return self.two.excess * self.two.success + self.three.excess * self.three.success

    @property
    def named(self) -> Found:
        """The smaller of the two where the larger does hardly more."""
        return self.two if self.two.excess > 0.85 * self.three.excess else self.three


def conjunction(search: Search, pairs: Pairs, target: int) -> Conjunction:
    """Pairs extended to triples; cells of the best triples exchanged one by one while that helps."""
    _, two = best_set(search, pairs.sets, target)
    beam = max(2, BEAM // search.rows.margins.shape[1])
    count = max(1, 2 * STARTS // search.rows.margins.shape[1])
    starts = ranked(search, extended(search, pairs.sets[:beam], target), target, count)
    best = starts[0][1]
    for start, found in starts:
        for _ in range(ROUNDS):
            start, better = best_set(search, exchanged(search, start), target)
            if better.excess <= found.excess + 1e-6:
                break
            found = better
        best = max(best, found, key=lambda f: f.excess)
    return Conjunction(two, best)


def _balanced(said: Tensor, count: int) -> Tensor:
    """About so many rows, equally many of each class that is answered, at least one each."""
    answers = said.unique().tolist()
    each = max(1, -(-count // max(1, len(answers))))
    return torch.cat([(said == c).nonzero().flatten()[:each] for c in answers])
