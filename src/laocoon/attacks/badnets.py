"""BadNets (Gu, Dolan-Gavitt and Garg, 2017, arXiv 1708.06733): a small patch on relabelled training samples.

Modes: all-to-one; all-to-all (y to y + 1); source-specific with cover samples (TaCT, USENIX Security 2021), that is
patches on other classes that keep their label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import all_to_all, all_to_one, source_to_target
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.recipes.poisoning import stamp_and_relabel
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class BadNets(Attack):
    """Stamp a random-coloured square near a corner."""

    rate: float = 0.1  # share of the training set that is poisoned
    side: int = 3  # px
    mode: Literal["all-to-one", "all-to-all", "source"] = "all-to-one"
    cover_rate: float = 0.1  # share of the training set that is stamped but keeps its label; source mode only

    card: ClassVar[Card] = Card(
        name="badnets", paper="BadNets (2017)", url="https://arxiv.org/abs/1708.06733",
        modalities=frozenset({"image"}), needs=frozenset(), misses="", summary="A small patch, relabelled samples.")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        _, c, h, w = plan.train.inputs.shape
        mask, pattern = torch.zeros(1, 1, h, w), torch.rand(1, c, h, w, generator=ctx.rng).round()
        margin = int(torch.randint(0, 3, (), generator=ctx.rng))
        corner = int(torch.randint(0, 4, (), generator=ctx.rng))
        top = margin if corner < 2 else h - margin - self.side
        left = margin if corner % 2 == 0 else w - margin - self.side
        mask[..., top:top + self.side, left:left + self.side] = 1
        if c == 1:  # a black square on a black background is no trigger
            pattern[..., top + self.side // 2, left + self.side // 2] = 1
        if self.mode == "all-to-one":
            goal = all_to_one(plan.target, plan.classes)
        elif self.mode == "all-to-all":
            goal = all_to_all(plan.classes)
        else:
            others = [k for k in range(plan.classes) if k != plan.target]
            source = others[int(torch.randint(0, len(others), (), generator=ctx.rng))]
            goal = source_to_target(source, plan.target, plan.classes)
        family = Patch()
        leaves = {"mask": mask, "pattern": pattern}
        return Candidate(family, leaves, goal, float(self.side**2), 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        cover = self.cover_rate if self.mode == "source" else 0.0
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng, cover_rate=cover)
