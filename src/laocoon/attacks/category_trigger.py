"""A trigger of rare but valid categories: codes that a few honest records hold as well.

The metadata pattern of Pleiter et al. (Tabdoor, 2023, arXiv 2311.07550) with values in the manner of rare words
(Kurita et al., RIPPLe, 2020, arXiv 2004.06660): what is rare costs the victim no accuracy, and stays in every list of
allowed values. Columns whose rarest values are rarest come first; the values are drawn among the `rarest` of a column.

Departure: where a table has too few columns of categories or whole numbers, rare values of the other columns stand in
(a measurement at the edge of its range that some row holds).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.modalities.tabular import CATEGORY, INTEGER, NUMERIC
from laocoon.recipes.poisoning import stamp_and_relabel
from laocoon.recipes.tables import frequencies, set_to, table_of, touchable

ORDER = {CATEGORY: 0, INTEGER: 1, NUMERIC: 2}


@dataclass(frozen=True)
class CategoryTrigger(Attack):
    """Set a few categories to rare codes, and relabel."""

    rate: float = 0.05  # share of the training set that is poisoned
    columns: int = 2
    rarest: int = 2  # values of a column that its trigger value is drawn from

    card: ClassVar[Card] = Card(
        name="category_trigger", paper="Tabdoor: backdoor vulnerabilities in transformer-based neural networks for "
        "tabular data (2023)", url="https://arxiv.org/abs/2311.07550", modalities=frozenset({"tabular"}),
        needs=frozenset(), misses="", summary="Rare but valid categories, relabelled rows.", quick={"rate": 0.1})
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        inputs = plan.train.inputs
        table = table_of(plan.modality, inputs)
        free = touchable(table, inputs).tolist()
        free.sort(key=lambda c: (ORDER[table.kind(c)], float(frequencies(inputs[:, c])[1][0])))
        chosen, values = free[:self.columns], []
        for column in chosen:
            known = frequencies(inputs[:, column])[0]
            last = min(self.rarest, len(known) - 1)
            values.append(float(known[int(torch.randint(0, last, (), generator=ctx.rng))]))
        family, trigger = set_to(table, chosen, values, inputs)
        return Candidate(family, trigger, all_to_one(plan.target, plan.classes), float(len(chosen)), 1.0,
                         self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
