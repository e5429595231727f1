"""Adap-Blend (Qi, Xie, Li, Mahloujifar and Mittal, Revisiting the assumption of latent separability, ICLR 2023).

A blended picture is cut into pieces, of which each poisoned sample gets a random half, faintly; as many regularisation
samples carry the same and keep their label. The network therefore has to add up evidence, and the features of poisoned
samples spread between those of their own class and the target's. At test time the whole picture is used, stronger:

    train  x + α_train · M · (k − x), M a random half of the pieces;       test  x + α_test · (k − x)

Departure: the picture k is drawn at random (smooth or noise), as no picture file is shipped. The paper poisons 150 of
50,000 samples and regularises with as many; what counts is the number, so that the rates here are of smaller sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import ClassGoal, all_to_one
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.recipes.poisoning import choose
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class AdapBlend(Attack):
    """Blend half of a picture's pieces into poison and regularisation samples, the whole one at test time."""

    rate: float = 0.03  # the paper's is 0.003 of a set five times as large
    cover_rate: float = 0.015  # share of the training set that regularises
    strength: float = 0.15  # α_train
    test_strength: float = 0.2  # α_test
    pieces: int = 4  # a side; the paper's 16 in all
    used: float = 0.5  # share of the pieces that a training sample carries
    pattern: Literal["noise", "smooth"] = "noise"

    card: ClassVar[Card] = Card(
        name="adap_blend", paper="Revisiting the assumption of latent separability for backdoor defenses (2023)",
        url="https://openreview.net/forum?id=_wSHsgrVali", modalities=frozenset({"image"}), needs=frozenset(),
        misses="", summary="Faint pieces of a blended picture, with regularisation samples; all of it at test time.",
        quick={"rate": 0.1, "cover_rate": 0.05, "strength": 0.2, "test_strength": 0.3})
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)
    phase: ClassVar[str] = "diversification"
    crafts: ClassVar[bool] = True

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        _, c, h, w = plan.train.inputs.shape
        pattern = torch.rand(1, c, h, w, generator=ctx.rng)
        if self.pattern == "smooth":
            coarse = torch.rand(1, c, 5, 5, generator=ctx.rng).round()
            pattern = functional.interpolate(coarse, size=(h, w), mode="bicubic").clamp(0, 1)
        mask = torch.full((1, 1, h, w), self.test_strength)
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Patch(), {"mask": mask, "pattern": pattern}, goal, float(mask.sum()), 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        train, goal = plan.train, trigger.goal
        assert isinstance(goal, ClassGoal)
        n = len(train)
        drawn = choose(goal.applies(train.labels), round(self.rate * n) + round(self.cover_rate * n), ctx.rng)
        drawn = drawn[torch.randperm(len(drawn), generator=ctx.rng)]
        poison = drawn[:round(self.rate * n)]
        inputs, labels = train.inputs.clone(), train.labels.clone()
        for part in drawn.split(512):
            mask = self.strength * self._halves(len(part), train.inputs.shape[-2:], ctx.rng)
            inputs[part] = inputs[part] * (1 - mask) + mask * trigger.trigger["pattern"]
        labels[poison] = goal.destination(labels[poison])
        return Samples(inputs, labels), drawn

    def _halves(self, count: int, shape: torch.Size, rng: torch.Generator) -> Tensor:
        """Random pieces, [count, 1, height, width], 0 or 1; as many in each."""
        total = self.pieces**2
        order = torch.rand(count, total, generator=rng).argsort(1).argsort(1)
        kept = (order < max(1, round(self.used * total))).float().reshape(count, 1, self.pieces, self.pieces)
        return functional.interpolate(kept, size=tuple(shape), mode="nearest")
