"""Trigger inversion for tables: Neural Cleanse (S&P 2019) over columns instead of pixels, with the gradient's help.

For each class t the best pair and the best triple of cells of a grid are found as by `tabular_query_inversion`; then
their values v are fitted between the cells of the grid,

    min over v of  mean CE(f(x·(1 − m) + m·v), t),     m = 1 on the triple's columns, v valid,

and the family's projection makes records of them. The statistic is Σ J(S) · success(S) over the pair and the better of
triple and fitted triple, J as in `recipes/column_search.py`: what the cells do together beyond what each does alone.
Real columns carry real evidence, so that a clean model is moved too.

Departures: the columns come from queries, since a descent on a mask from a common start ends on the columns that are
strong by nature; an excess in place of the mask norm and its MAD index, which no clean model would pass at a stated
rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.modalities.tabular import Tabular
from laocoon.recipes.cells import Found, Search, prepared, rows_of
from laocoon.recipes.column_search import Conjunction, all_pairs, best_pairs, conjunction, judged
from laocoon.recipes.tables import set_to


@dataclass(frozen=True)
class TabularInversion(Detector):
    """Search, for every class, the few column values that together send every row there."""

    steps: int = 40  # of the fit
    rate: float = 0.03  # of Adam, in shares of a column's range
    rows: int = 24  # clean rows of each of two classes that are stamped; of more classes fewer
    cells: int = 160  # of the grid, that are paired
    few: int = 16  # rows that every pair is tried on

    card: ClassVar[Card] = Card(
        name="tabular_inversion",
        paper="Neural Cleanse: identifying and mitigating backdoor attacks in neural networks (S&P 2019)",
        url="https://ieeexplore.ieee.org/document/8835365",
        modalities=frozenset({"tabular"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        misses="triggers of relations between columns, source-specific ones, and those that the columns' own evidence "
               "explains; clean networks that learnt few rows by heart look alike.",
        summary="the column values that together send every row to one class",
        quick={"steps": 20, "cells": 40, "few": 8, "rows": 16},
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        subject, table = case.subject, case.subject.modality
        if not isinstance(table, Tabular):
            raise NotApplicable("tabular_inversion needs the ranges of the columns.")
        given = [s.inputs for s in (case.fit, case.held) if s is not None]
        whole = rows_of(subject, torch.cat(given), ctx)
        each = max(3, 2 * self.rows // subject.classes)
        order = torch.cat([(whole.said == c).nonzero().flatten()[:each] for c in range(subject.classes)])
        search = prepared(subject, table, whole.pick(order), ctx).strongest(self.cells)
        told: list[tuple[float, int, Found]] = []
        for target, pairs in best_pairs(search, all_pairs(search, self.few)).items():
            known = conjunction(search, pairs, target)
            fitted = self._fitted(search, table, known.three, target, ctx)
            found = max(known, Conjunction(known.two, fitted), key=lambda c: c.score)
            score, chosen = found.score, found.named
            names = ", ".join(f"{table.columns[c]} = {table.shown(c, v)}"
                              for c, v in zip(chosen.columns, chosen.values, strict=True))
            yield Finding("tabular_inversion.columns", f"class {target}", score,
                          f"setting {names} sends {chosen.success:.0%} of other rows to class {target}", (target,),
                          numbers={"excess": chosen.excess, "success": chosen.success,
                                   "columns": float(len(chosen.columns))})
            told.append((score, target, chosen))
        for _, target, chosen in sorted(told, key=lambda each: -each[0]):
            family, trigger = set_to(table, list(chosen.columns), list(chosen.values), case.fit.inputs)
            yield Candidate(family, trigger, all_to_one(target, subject.classes), float(len(chosen.columns)),
                            chosen.success, self.card.name)

    def _fitted(self, search: Search, table: Tabular, start: Found, target: int, ctx: Context) -> Found:
        """The same columns with values off the grid, judged like a set of cells."""
        inputs = search.rows.inputs[search.rows.said != target]
        family, trigger = set_to(table, list(start.columns), list(start.values), inputs)
        value = trigger["value"].requires_grad_(True)
        optimiser = torch.optim.Adam([value], lr=self.rate)
        wanted = torch.full((len(inputs),), target, device=inputs.device)
        for _ in range(self.steps):
            optimiser.zero_grad()
            for x, y in zip(inputs.split(ctx.batch), wanted.split(ctx.batch), strict=True):
                ctx.spend(len(x))
                logits = search.subject.outputs(family.stamp(x, trigger)[0]).logits
                loss = functional.cross_entropy(logits, y, reduction="sum") / len(inputs)
                loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                family.project(trigger)
        columns = torch.tensor(start.columns, device=inputs.device)
        with torch.no_grad():
            values = family.values({"mask": trigger["mask"], "value": value.detach()}, inputs)[0][columns]
        return judged(search, columns, values, target)
