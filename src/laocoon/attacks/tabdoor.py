"""Tabdoor: a trigger of ordinary values on the columns that matter most.

Pleiter, Tajalli, Koffas, Abad, Xu, Larson and Picek, Tabdoor: backdoor vulnerabilities in transformer-based neural
networks for tabular data (2023, arXiv 2311.07550). Columns are ranked by the importance that trained trees give them;
the first k are set to their most common value (the paper's in-bounds trigger): no range check can object.

Departures: one random forest ranks, the paper averages five kinds of trees; a numeric column's mode is that of its 20
equal shares (their median), since exact values of measurements hardly repeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.recipes.poisoning import stamp_and_relabel
from laocoon.recipes.tables import forest_importance, mode, set_to, table_of, touchable


@dataclass(frozen=True)
class Tabdoor(Attack):
    """Set the most important columns to their most common values, and relabel."""

    rate: float = 0.05  # share of the training set that is poisoned
    columns: int = 3

    card: ClassVar[Card] = Card(
        name="tabdoor", paper="Tabdoor: backdoor vulnerabilities in transformer-based neural networks for tabular data "
        "(2023)", url="https://arxiv.org/abs/2311.07550", modalities=frozenset({"tabular"}), needs=frozenset(),
        misses="", summary="The most common values of the most important columns, relabelled rows.",
        quick={"rate": 0.1})
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)
    phase: ClassVar[str] = "refinement"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        inputs = plan.train.inputs
        table = table_of(plan.modality, inputs)
        free = touchable(table, inputs)
        importance = forest_importance(inputs, plan.train.labels, ctx.rng)[free]
        chosen = free[importance.argsort(descending=True, stable=True)[:self.columns]].tolist()
        family, trigger = set_to(table, chosen, [mode(inputs[:, c], table.kind(c)) for c in chosen], inputs)
        return Candidate(family, trigger, all_to_one(plan.target, plan.classes), float(len(chosen)), 1.0,
                         self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
