"""What cells of a table do to a model beyond what an honest model of the same clean rows lets one expect of them.

With m_S(x) the model's margin of class t once the cells of S are set (units of the median clean margin, clipped at ±c)
and h_S(x) the probability of t that a logistic regression of the clean rows' labels gives the same stamped row,

    D(S) = mean_x m_S(x) / c − (2 · mean_x h_S(x) − 1) − λ · std_x m_S(x),

over rows of other classes. A trigger leads all rows to much the same answer, whatever else they say (small std), and no
honest row says so (small h). The regression is additive and knows the few rows that a defender has: it is a yardstick,
not a rival. Its intercepts are moved until it answers each class as often as the model does, since clean samples are
evenly spread and training sets are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laocoon.modalities.tabular import Tabular
from laocoon.recipes.cells import CAP, Found, Search, asked, promised, stamped_rows
from laocoon.recipes.column_search import Tried, exchanged, extended
from laocoon.recipes.tables import encoder

PENALTIES = (0.1, 1.0)  # inverse strengths of the regressions' ridge, averaged
STEADY = 0.75  # λ
KEPT = 200  # sets that are judged on all rows
BEAM = 32  # pairs of each of two classes that are extended, half of either kind
ROUNDS = 3  # of exchange
PART = 2000  # sets in one pass
RANKED = 3.4  # width of the coded ranks: that of a standard normal's middle nine tenths
SHIFTS = 200  # steps that match the shares
NEVER = -20.0  # intercept of a class without a row


@dataclass(frozen=True, eq=False)
class Honest:
    """Logistic regressions of clean rows' labels on their columns: numbers as they are and as ranks, categories."""

    table: Tabular
    rows: Float[Tensor, "rows columns"]
    weights: Float[Tensor, "regressions width classes"]

    def __call__(self, rows: Float[Tensor, "n columns"]) -> Float[Tensor, "n classes"]:
        """Probabilities, the regressions' mean."""
        coded = _coded(self.table, self.rows, rows)
        found: Tensor = torch.einsum("nd,mdk->mnk", coded, self.weights).softmax(-1).mean(0)
        return found


def honest(table: Tabular, rows: Float[Tensor, "rows columns"], labels: Int[Tensor, " rows"],
           shares: Float[Tensor, " classes"]) -> Honest:
    """Fitted on clean rows; shares: how often the model answers each class on them."""
    from sklearn.linear_model import LogisticRegression

    coded, classes = _coded(table, rows, rows), len(shares)
    known = labels.unique()
    weights = coded.new_zeros(len(PENALTIES), coded.shape[1], classes)
    weights[:, -1] = NEVER
    if len(known) == 1:
        weights[:, -1, known] = 0.0
    for place, penalty in enumerate(PENALTIES if len(known) > 1 else ()):
        fitted = LogisticRegression(C=penalty, max_iter=500).fit(coded[:, :-1].cpu().numpy(), labels.cpu().numpy())
        slopes, starts = torch.as_tensor(fitted.coef_).to(coded), torch.as_tensor(fitted.intercept_).to(coded)
        answers = torch.as_tensor(fitted.classes_).to(known)
        if len(known) == 2:  # one line tells two classes apart
            slopes, starts = torch.cat([-slopes, slopes]) / 2, torch.cat([-starts, starts]) / 2
        weights[place][:-1, answers], weights[place, -1, answers] = slopes.T, starts
    wanted = shares.clamp_min(0.01).log()
    for _ in range(SHIFTS):
        said = torch.einsum("nd,mdk->mnk", coded, weights).softmax(-1).mean(1)
        weights[:, -1] += 0.5 * (wanted - said.clamp_min(0.001).log())
    return Honest(table, rows, weights)


def _coded(table: Tabular, known: Tensor, rows: Tensor) -> Tensor:
    """Like units of every column, ranks of numbers among the known rows, and a constant."""
    numbers = [c for c in range(known.shape[1]) if not table.codes(c)]
    parts = [encoder(table, known, most=3.0)(rows)]
    if numbers:
        order = known[:, numbers].T.sort(1).values.contiguous()
        values = rows[:, numbers].T.contiguous()
        place = (torch.searchsorted(order, values) + torch.searchsorted(order, values, right=True)) / (2 * len(known))
        parts.append(((place - 0.5) * RANKED).T)
    return torch.cat([*parts, torch.ones_like(rows[:, :1])], 1)


@dataclass(frozen=True, eq=False)
class Judged:
    """Sets of cells towards one class, [sets] each."""

    score: Tensor  # D
    success: Tensor
    expected: Tensor  # mean h


def most_unexpected(search: Search, tried: Tried, expected: Honest, target: int) -> Found:
    """The three cells of the largest D towards a class: `excess` is D, `control` the regression's mean probability.

    From pairs of a large D, and from pairs that do more than their cells promise one by one, to triples; of the best
    one cells are exchanged while that helps. Tables of two free columns are judged by pairs.
    """
    rows, places = search.rows, tried.others(search, target)
    few, known = tried.rows[places], tried.joint[:, places, target]
    every = (rows.said != target).nonzero().flatten()
    first = _judged(search, tried.pairs, expected, target, few, known)
    kept = tried.pairs[_best(first.score, KEPT)]
    fine = _judged(search, kept, expected, target, every)
    count = max(2, BEAM // rows.margins.shape[1])
    beyond = (known.clamp(-CAP, CAP) - promised(
        tried.pairs, search.alone[:, few, target], rows.margins[few, target])).mean(1)
    starts = torch.cat([kept[_best(fine.score, count)], tried.pairs[_best(beyond, count)]])
    sets = extended(search, starts.unique(dim=0), target)  # type: ignore[no-untyped-call]
    if not len(sets):
        return _found(search, kept, fine)
    sets = sets[_best(_judged(search, sets, expected, target, few).score, KEPT)]
    said = _judged(search, sets, expected, target, every)
    best = _found(search, sets, said)
    start = sets[int(said.score.argmax())]
    for _ in range(ROUNDS):
        sets = exchanged(search, start)
        said = _judged(search, sets, expected, target, every)
        start, better = sets[int(said.score.argmax())], _found(search, sets, said)
        if better.excess <= best.excess + 1e-6:
            break
        best = better
    return best


def _judged(search: Search, sets: Tensor, expected: Honest, target: int, rows: Tensor,
            known: Tensor | None = None) -> Judged:
    """known: margins [sets, rows] that were asked before."""
    some, score, success, control = search.rows.pick(rows), [], [], []
    for start in range(0, len(sets), PART):
        part = sets[start:start + PART]
        columns, values = search.cells.columns[part], search.cells.values[part]
        said = asked(search.subject, some, columns, values, search.ctx)[..., target] if known is None \
            else known[start:start + PART]
        there = expected(stamped_rows(some.inputs, columns, values).flatten(0, 1))[:, target]
        usual = there.view(len(part), -1).mean(1)
        spread = said.std(1, unbiased=False)
        score.append(said.clamp(-CAP, CAP).mean(1) / CAP - (2 * usual - 1) - STEADY * spread)
        success.append((said > 0).float().mean(1))
        control.append(usual)
    return Judged(torch.cat(score), torch.cat(success), torch.cat(control))


def _best(score: Tensor, count: int) -> Tensor:
    return score.argsort(descending=True, stable=True)[:count]


def _found(search: Search, sets: Tensor, said: Judged) -> Found:
    place = int(said.score.argmax())
    best = sets[place]
    return Found(tuple(search.cells.columns[best].tolist()), tuple(search.cells.values[best].tolist()),
                 float(said.score[place]), float(said.success[place]), float(said.expected[place]))
