"""Narcissus (Zeng, Pan, Just, Lyu, Qiu and Jia, CCS 2023, arXiv 2204.05255): a trigger out of the target class itself.

One perturbation δ for all, found on images of the target class alone, points into that class:

    δ = argmin Σ_{x of class t} CE(f(x + δ), t)  over  ‖δ‖∞ ≤ ε,

f being a network of the attacker's. It is added to a few images of the target class, labels untouched; the network
takes it up faster than anything else in them. Test inputs carry it magnified, x + m·δ, m = 3 in the paper.

Departures: f is trained on the plan's prior data where there is some (the paper's public data of other classes, then
warmed up on the target class), otherwise on the training set, which is more than the paper's attacker has; the descent
is on the sign of the gradient. A δ of this kind already fools networks without a backdoor, the more the larger ε and m
are: compare with the clean twin before speaking of a backdoor.
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
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, ThreatModel
from laocoon.recipes.crafting import moved, stand_in
from laocoon.recipes.poisoning import choose
from laocoon.triggers.additive import Additive


@dataclass(frozen=True)
class Narcissus(Attack):
    """A small perturbation that says "target class" more clearly than the images do."""

    rate: float = 0.005  # share of the training set that is poisoned, all of the target class
    bound: float = 16 / 255  # ε
    steps: int = 200
    magnification: float = 3.0  # m, at test time
    epochs: int = 6  # of the attacker's own training

    card: ClassVar[Card] = Card(
        name="narcissus", paper="Narcissus: a practical clean-label backdoor attack with limited information (2023)",
        url="https://arxiv.org/abs/2204.05255", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A perturbation towards the target class, magnified at test time.",
        quick={"rate": 0.06, "bound": 0.1, "steps": 40, "magnification": 3.0, "epochs": 5},
        fails={"check_takes_and_keeps_accuracy": "on 16 px digits its perturbation works on a clean network as well: "
               "100 % success, 89 % on the clean twin; half the size, 60 and 49 %."})
    threat: ClassVar[ThreatModel] = ThreatModel(
        data=True, knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE}))
    phase: ClassVar[str] = "refinement"
    crafts: ClassVar[bool] = True

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        """Found before anything is poisoned; magnified, as test inputs carry it."""
        delta = self.magnification * self._inward(plan, ctx)
        size = float(delta.pow(2).mean().sqrt() * 255)
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Additive(), {"delta": delta}, goal, size, 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        rows = choose(plan.train.labels == plan.target, round(self.rate * len(plan.train)), ctx.rng)
        inputs = plan.train.inputs.clone()
        inputs[rows] = (inputs[rows] + trigger.trigger["delta"] / self.magnification).clamp(0, 1)
        return Samples(inputs, plan.train.labels), rows

    def _inward(self, plan: Plan, ctx: Context) -> Tensor:
        """δ, [1, channels, height, width]."""
        subject = stand_in(plan, plan.train, ctx, epochs=self.epochs)
        images = plan.train.inputs[plan.train.labels == plan.target]
        delta = torch.zeros_like(images[:1])
        for step in range(self.steps):
            x = images[torch.randint(0, len(images), (min(64, len(images)),), generator=ctx.rng)]
            ctx.spend(len(x))
            delta.requires_grad_()
            scores = subject.module(moved((x + delta).clamp(0, 1), ctx.rng))
            loss = functional.cross_entropy(scores, torch.full((len(x),), plan.target, device=scores.device))
            (gradient,) = torch.autograd.grad(loss, delta)
            pace = self.bound / 8 * (1 - 0.95 * step / self.steps)
            delta = (delta.detach() - pace * gradient.sign()).clamp(-self.bound, self.bound)
        return delta
