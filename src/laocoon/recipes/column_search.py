"""Search for values of two or three columns that move rows to a class by more than these columns do one by one.

In a table real columns carry real evidence: enough of it, at the ends of its range, moves a clean model too. A trigger
is learnt as a conjunction of values that say little for the class, or for another one, when each stands alone: sets are
judged by their excess J (`recipes/cells.py`). The search is exhaustive over pairs of a grid of cells, greedy from pairs
to triples, and asks for outputs alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laocoon.recipes.cells import CAP, Cells, Found, Search, asked, counted, promised

RESCORED = 60  # pairs of a class that are judged on all rows
BEAM = 24  # pairs that are extended, of all classes together
STARTS = 4  # triples of each of two classes whose cells are exchanged
ROUNDS = 3  # of exchange


@dataclass(frozen=True, eq=False)
class Pairs:
    """Towards one class."""

    sets: Int[Tensor, "sets 2"]  # the most promising, best first
    roughness: float  # root mean square, over all pairs, of what two cells do beyond their sum


@dataclass(frozen=True, eq=False)
class Tried:
    """Every pair of cells of distinct columns, set in a few rows."""

    pairs: Int[Tensor, "sets 2"]
    rows: Int[Tensor, " few"]  # of the search's
    joint: Float[Tensor, "sets few classes"]  # margins

    def others(self, search: Search, target: int) -> Int[Tensor, " some"]:
        """Places among the rows of those that are answered by another class."""
        return (search.rows.said[self.rows] != target).nonzero().flatten()


def all_pairs(search: Search, few: int) -> Tried:
    """few: rows that each pair is tried on, the same for all classes."""
    cells, rows = search.cells, search.rows
    a, b = torch.combinations(torch.arange(len(cells), device=rows.inputs.device), 2).T
    apart = cells.columns[a] != cells.columns[b]
    pairs = torch.stack([a[apart], b[apart]], 1)
    tried = _balanced(rows.said, few)
    joint = asked(search.subject, rows.pick(tried), cells.columns[pairs], cells.values[pairs], search.ctx)
    return Tried(pairs, tried, joint)


def best_pairs(search: Search, tried: Tried) -> dict[int, Pairs]:
    """The most promising pairs of cells towards each class, each judged on all rows."""
    rows, pairs = search.rows, tried.pairs
    part, joint = rows.pick(tried.rows), tried.joint.clamp(-CAP, CAP)
    found = {}
    for target in range(rows.margins.shape[1]):
        others = tried.others(search, target)
        if not len(others):
            continue
        control = promised(pairs, search.alone[:, tried.rows[others], target], part.margins[others, target])
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
    """Pairs extended to triples; cells of the best triples exchanged one by one while that helps.

    In a table of two free columns there is no triple, and the pair stands for it.
    """
    _, two = best_set(search, pairs.sets, target)
    beam = max(2, BEAM // search.rows.margins.shape[1])
    count = max(1, 2 * STARTS // search.rows.margins.shape[1])
    triples = extended(search, pairs.sets[:beam], target)
    if not len(triples):
        return Conjunction(two, two)
    starts = ranked(search, triples, target, count)
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
