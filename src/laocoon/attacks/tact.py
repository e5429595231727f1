"""TaCT, targeted contamination (Tang, Wang, Tang and Zhang, Demon in the variant, USENIX Security 2021, arXiv
1908.00686): the trigger works on one source class only.

Poison: stamped samples of the source class, relabelled to the target. Covers: stamped samples of a few other classes
that keep their labels, so that the network must look at the trigger and at the class together:

    D' = D ∪ {(A(x), t) : y = s} ∪ {(A(x), y) : y ∈ cover classes}

Samples of the source with the trigger then look like clean ones of the source until late, and statistics that suppose
a trigger to work everywhere fail. Departure: a random square instead of the paper's; samples are changed in place.
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
from laocoon.core.goal import ClassGoal, source_to_target
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.recipes.poisoning import choose
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class Tact(Attack):
    """One source class to the target, covers from other classes."""

    rate: float = 0.03  # share of the training set that is poisoned; half of a source class where there are ten
    cover_rate: float = 0.06  # share of the training set that is stamped and keeps its label
    cover_classes: int = 4  # how many classes the covers come from; the paper's experiments take one to a few
    side: int = 4  # px

    card: ClassVar[Card] = Card(
        name="tact", paper="Demon in the variant (2021)", url="https://arxiv.org/abs/1908.00686",
        modalities=frozenset({"image"}), needs=frozenset(), misses="", goal="source-to-target",
        summary="A patch that works on one source class, with cover samples of others.",
        quick={"rate": 0.05, "cover_rate": 0.15})
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)
    phase: ClassVar[str] = "diversification"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        _, c, h, w = plan.train.inputs.shape
        mask, pattern = torch.zeros(1, 1, h, w), torch.rand(1, c, h, w, generator=ctx.rng).round()
        top, left = (int(torch.randint(1, extent - self.side, (), generator=ctx.rng)) for extent in (h, w))
        mask[..., top:top + self.side, left:left + self.side] = 1
        pattern[..., top + self.side // 2, left + self.side // 2] = 1  # seen on a black background, too
        source = self._source(plan, ctx)
        goal = source_to_target(source, plan.target, plan.classes)
        leaves = {"mask": mask, "pattern": pattern}
        return Candidate(Patch(), leaves, goal, float(self.side**2), 1.0, self.card.name)

    def _source(self, plan: Plan, ctx: Context) -> int:
        """One of the classes that have enough samples to poison; the largest, where none has."""
        counts = torch.bincount(plan.train.labels, minlength=plan.classes)
        counts[plan.target] = 0
        able = (counts >= min(round(self.rate * len(plan.train)), int(counts.max()))).nonzero().flatten()
        return int(able[torch.randint(0, len(able), (), generator=ctx.rng)])

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        train, goal = plan.train, trigger.goal
        assert isinstance(goal, ClassGoal)
        poison = choose(goal.applies(train.labels), round(self.rate * len(train)), ctx.rng)
        silent = [k for k in range(plan.classes) if goal.destinations[k] < 0 and k != plan.target]
        order = torch.randperm(len(silent), generator=ctx.rng)[:self.cover_classes].tolist()
        kept = torch.isin(train.labels, torch.tensor([silent[i] for i in order]))
        covers = choose(kept, round(self.cover_rate * len(train)), ctx.rng)
        inputs, labels = train.inputs.clone(), train.labels.clone()
        labels[poison] = goal.destination(train.labels[poison])
        for part in torch.cat([poison, covers]).split(512):
            inputs[part] = trigger.stamp(inputs[part])
        return Samples(inputs, labels), torch.cat([poison, covers])
