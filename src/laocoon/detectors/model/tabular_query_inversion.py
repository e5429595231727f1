"""Trigger inversion for tables without a gradient: a grid of cells, exhaustive over pairs, greedy to triples.

Neural Cleanse's question (S&P 2019), the smallest change that sends every row to one class, asked of a black box in the
way of B3D (Dong et al., ICCV 2021, arXiv 2103.13127), which needs outputs alone. Tables have few columns, and a valid
record few values worth trying, so that a grid takes the place of B3D's natural evolution strategy.

For each class the statistic is Σ_{k=2,3} J(S_k) · success(S_k) over the best pair and the best triple of cells, J as in
`recipes/cells.py`: by how much the cells do more together than one by one, and more than the clean rows let one expect.
Real columns carry real evidence, and enough of it moves a clean model as well; a conjunction that says nothing part by
part is learnt from poison only (or from few rows by a network that learns them by heart).

Of a trigger of rare codes a victim often learns one code alone, and no conjunction. So J · success of the best single
category or whole number is a rule of its own (`cell`); measurements are left out, whose ends move clean models far.

Both rules expect of a model what it says of single cells, and a trigger whose cells each suffice is then expected, too.
The third (`unexpected`) holds the model against a logistic regression of the clean rows: `recipes/unexpected.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.modalities.tabular import Tabular
from laocoon.recipes.cells import Found, best_single, codes, prepared, rows_of
from laocoon.recipes.column_search import all_pairs, best_pairs, conjunction
from laocoon.recipes.tables import set_to
from laocoon.recipes.unexpected import honest, most_unexpected


@dataclass(frozen=True)
class TabularQueryInversion(Detector):
    """Search, by queries alone, the two or three cells that send every row to one class, and no one of them alone."""

    rows: int = 24  # clean rows of each of two classes that a set is judged on; of more classes fewer
    cells: int = 160  # of the grid, that are paired
    few: int = 16  # rows that every pair is tried on

    card: ClassVar[Card] = Card(
        name="tabular_query_inversion",
        paper="Black-box Detection of Backdoor Attacks with Limited Information and Data (ICCV 2021)",
        url="https://arxiv.org/abs/2103.13127", modalities=frozenset({"tabular"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        misses="ordinary values on important columns, which clean rows half expect anyway (sealed AUROC 0.61); "
               "triggers of one measured column or of more than four; values far from the grid's; source-specific "
               "backdoors; some 200,000 queries.",
        summary="cells that only together send every row to one class; outputs alone",
        quick={"cells": 48, "few": 8, "rows": 16})

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        subject, table = case.subject, case.subject.modality
        if not isinstance(table, Tabular):
            raise NotApplicable("the columns of the table are not known.")
        given = [s.inputs for s in (case.fit, case.held) if s is not None]
        whole = rows_of(subject, torch.cat(given), ctx)
        each = max(3, 2 * self.rows // subject.classes)
        order = torch.cat([(whole.said == c).nonzero().flatten()[:each] for c in range(subject.classes)])
        everything = prepared(subject, table, whole.pick(order), ctx)
        marks, search = codes(everything, table), everything.strongest(self.cells)
        told: list[tuple[float, int, Found]] = []
        shares = torch.bincount(whole.said, minlength=subject.classes) / len(whole.said)
        labels = torch.cat([s.labels for s in (case.fit, case.held) if s is not None]).to(whole.said)
        expected = honest(table, whole.inputs, labels, shares)
        tried = all_pairs(search, self.few)
        for target, some in best_pairs(search, tried).items():
            found = conjunction(search, some, target)
            chosen = found.named
            told.append((found.score, target, chosen))
            yield Finding("tabular_query_inversion.columns", f"class {target}", found.score,
                          f"{named(table, chosen)} send {chosen.success:.0%} of other rows to class {target}; one by "
                          "one they would not", (target,), numbers={"excess": chosen.excess, "success": chosen.success,
                                   "columns": float(len(chosen.columns))})
            beyond = most_unexpected(search, tried, expected, target)
            told.append((beyond.excess, target, beyond))
            yield Finding("tabular_query_inversion.unexpected", f"class {target}", beyond.excess,
                          f"{named(table, beyond)} send {beyond.success:.0%} of other rows to class {target}; a "
                          f"regression of the clean rows expects {beyond.control:.0%}", (target,),
                          numbers={"success": beyond.success, "expected": beyond.control})
            if len(marks):
                one = best_single(everything, target, marks)
                told.append((one.excess * one.success, target, one))
                yield Finding("tabular_query_inversion.cell", f"class {target}", one.excess * one.success,
                              f"{named(table, one)} alone sends {one.success:.0%} of other rows to class {target}; the "
                              "clean rows do not let one expect it", (target,),
                              numbers={"excess": one.excess, "success": one.success})
        for _, target, chosen in sorted(told, key=lambda each: -each[0]):
            family, trigger = set_to(table, list(chosen.columns), list(chosen.values), case.fit.inputs)
            yield Candidate(family, trigger, all_to_one(target, subject.classes), float(len(chosen.columns)),
                            chosen.success, self.card.name)


def named(table: Tabular, found: Found) -> str:
    """The cells as a person reads them."""
    return ", ".join(f"{table.columns[c]} = {table.shown(c, v)}"
                     for c, v in zip(found.columns, found.values, strict=True))
