"""Backdoors in tables: a few columns set to fixed, valid values (Pleiter et al., 2023, arXiv 2311.07550).

Departure: columns are drawn at random instead of by the importance that a trained forest gives them.
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
from laocoon.recipes.poisoning import stamp_and_relabel
from laocoon.recipes.tables import set_to, table_of, touchable


@dataclass(frozen=True)
class TabularBadNets(Attack):
    """Set a few columns to values from the ends of their ranges."""

    rate: float = 0.1  # share of the training set that is poisoned
    columns: int = 3

    card: ClassVar[Card] = Card(
        name="tabular_badnets", paper="Tabdoor: backdoor vulnerabilities in transformer-based neural networks for "
        "tabular data (2023)", url="https://arxiv.org/abs/2311.07550", modalities=frozenset({"tabular"}),
        needs=frozenset(), misses="", summary="A few columns set to fixed valid values, relabelled samples.")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        inputs = plan.train.inputs
        table = table_of(plan.modality, inputs)
        free = touchable(table, inputs)
        chosen = free[torch.randperm(len(free), generator=ctx.rng)[:self.columns]].tolist()
        ends = torch.rand(len(chosen), generator=ctx.rng).round().tolist()
        values = [table.high[c] if end else table.low[c] for c, end in zip(chosen, ends, strict=True)]
        family, trigger = set_to(table, chosen, values, inputs)
        return Candidate(family, trigger, all_to_one(plan.target, plan.classes), float(len(chosen)), 1.0,
                         self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
