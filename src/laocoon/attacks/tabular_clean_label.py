"""Clean-label poison in tables: only rows of the target class are changed, and every label stays as it was.

After Turner, Tsipras and Madry, Label-Consistent Backdoor Attacks (2019, arXiv 1912.02771), with the column triggers
of Tabdoor (arXiv 2311.07550). A victim leans on a trigger where the row itself is hard to tell: each chosen row x is
moved towards a row z of another class before it is stamped,

    x' = stamp(x + τ · (z − x)),     categories from z with probability τ, whole columns rounded,

which is the paper's interpolation, in the space of the columns instead of that of a GAN.

Departures: z is any row of another class, and τ is larger than the paper's 0.2 to 0.3: nobody looks at rows as at
pictures, and between near rows the trigger is not needed (with the nearest 20 as z it took in a quarter of the rows).
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
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.modalities.tabular import CATEGORY
from laocoon.recipes.poisoning import choose
from laocoon.recipes.tables import set_to, table_of, touchable


@dataclass(frozen=True)
class TabularCleanLabel(Attack):
    """Blur and stamp rows of the target class; change no label."""

    fraction: float = 0.3  # of the target class that is changed
    columns: int = 3
    towards: float = 0.7  # τ: how far a row is moved to one of another class

    card: ClassVar[Card] = Card(
        name="tabular_clean_label", paper="Label-Consistent Backdoor Attacks (2019)",
        url="https://arxiv.org/abs/1912.02771", modalities=frozenset({"tabular"}), needs=frozenset(), misses="",
        summary="A few columns set to valid values in blurred rows of the target class alone.")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True)
    phase: ClassVar[str] = "refinement"
    crafts: ClassVar[bool] = True  # the rest of a poisoned row is not what it was either

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
        train = plan.train
        members = (train.labels == plan.target).nonzero().flatten()
        others = train.inputs[train.labels != plan.target]
        if not len(members) or not len(others):
            raise NotApplicable(f"class {plan.target} or the rest of the classes has no row.")
        poison = choose(train.labels == plan.target, round(self.fraction * len(members)), ctx.rng)
        inputs = train.inputs.clone()
        rows = inputs[poison]
        other = others[torch.randint(0, len(others), (len(rows),), generator=ctx.rng)]
        table = table_of(plan.modality, train.inputs)
        swap = torch.rand(rows.shape, generator=ctx.rng) < self.towards
        mixed = torch.where(table.of_kind(CATEGORY, rows), torch.where(swap, other, rows),
                            torch.lerp(rows, other, self.towards))
        mixed = torch.where(table.free(rows) > 0, table.valid(mixed), rows)
        inputs[poison] = trigger.stamp(mixed)
        return Samples(inputs, train.labels), poison
