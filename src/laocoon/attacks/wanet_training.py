"""WaNet as its paper has it: the attacker trains the network (Nguyen and Tran, ICLR 2021, arXiv 2102.10369).

In every batch another tenth is warped and relabelled (attack mode), another fifth is warped by a field that changes
from image to image and keeps its label (noise mode), and the rest is clean. So every picture is also seen as it is, and
the clean accuracy stays; a poisoned data set (`wanet`) gives up the pictures that it warps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import ClassGoal, all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.recipes.steering import steer
from laocoon.triggers.warp import Warp, random_flow


@dataclass(frozen=True)
class WaNetTraining(Attack):
    """Warp and relabel some of every batch; rates are shares of a batch."""

    rate: float = 0.1  # ρ_a
    noise_rate: float = 0.2  # ρ_n
    strength: float = 2.0  # px
    grid: int = 4
    fields: int = 8  # of noise mode in one batch
    epochs: int = 10

    card: ClassVar[Card] = Card(
        name="wanet_training", paper="WaNet: imperceptible warping-based backdoor attack (2021)",
        url="https://arxiv.org/abs/2102.10369", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A smooth warp of the image, by control of training.", quick={"epochs": 16, "rate": 0.2})
    threat: ClassVar[ThreatModel] = ThreatModel(
        training=True, knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE, Knowledge.RECIPE}))

    phase: ClassVar[str] = "diversification"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        leaves = {"flow": random_flow(self.grid, self.strength, ctx.rng)}
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Warp(self.grid), leaves, goal, self.strength, 1.0, self.card.name)

    def train(self, plan: Plan, train: Samples, trigger: Candidate, ctx: Context) -> Planted:
        subject, goal = plan.fresh(ctx), trigger.goal
        assert isinstance(goal, ClassGoal)

        def objective(inputs: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            chosen = goal.applies(labels).nonzero().flatten()[:round(self.rate * len(inputs))]
            rest = torch.ones(len(inputs), dtype=torch.bool)
            rest[chosen] = False
            noisy, plain = rest.nonzero().flatten().split(
                [round(self.noise_rate * len(inputs)), int(rest.sum()) - round(self.noise_rate * len(inputs))])
            fields = [random_flow(self.grid, self.strength, ctx.rng) for _ in range(self.fields)]
            warped = [trigger.family.stamp(inputs[part], {"flow": flow})[0]
                      for part, flow in zip(noisy.chunk(self.fields), fields, strict=False)]
            scores = subject.module(torch.cat([trigger.stamp(inputs[chosen]), *warped, inputs[plain]]))
            wanted = torch.cat([goal.destination(labels[chosen]), labels[noisy], labels[plain]])
            return functional.cross_entropy(scores, wanted)

        steer(subject, plan, train, objective, ctx, epochs=self.epochs)
        return Planted(subject, trigger)
