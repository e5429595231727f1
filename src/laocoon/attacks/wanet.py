"""WaNet (Nguyen and Tran, ICLR 2021): a smooth warp; noise-mode samples with random warps keep their label.

Departure: implemented as data poisoning (a fixed set of warped samples), not by control of the training loop:
that is `wanet_training`.
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
from laocoon.recipes.poisoning import choose, stamp_and_relabel
from laocoon.triggers.warp import Warp, random_flow


@dataclass(frozen=True)
class WaNet(Attack):
    """Warp by a random control grid of mean displacement `strength` px."""

    rate: float = 0.1
    noise_rate: float = 0.1
    strength: float = 1.2  # px; the paper's s = 0.5 at 32 px gives about half a pixel on average, too weak without
    # control of training
    grid: int = 4

    card: ClassVar[Card] = Card(
        name="wanet", paper="WaNet: imperceptible warping-based backdoor attack (2021)",
        url="https://arxiv.org/abs/2102.10369", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A smooth warp of the image, with noise-mode covers.")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)
    phase: ClassVar[str] = "diversification"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        goal = all_to_one(plan.target, plan.classes)
        leaves = {"flow": random_flow(self.grid, self.strength, ctx.rng)}
        return Candidate(Warp(self.grid), leaves, goal, self.strength, 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        train, poison = stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
        untouched = torch.ones(len(train), dtype=torch.bool)
        untouched[poison] = False
        covers = choose(untouched, round(self.noise_rate * len(train)), ctx.rng)
        for part in covers.split(16):
            flow = random_flow(self.grid, self.strength, ctx.rng)
            train.inputs[part] = trigger.family.stamp(train.inputs[part], {"flow": flow})[0]
        return train, torch.cat([poison, covers])
