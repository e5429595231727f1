"""Feature collision (Poison Frogs, Shafahi et al., NeurIPS 2018, arXiv 1804.00792), with stamped images as its targets.

A poison image x looks like an image b of the target class and has the features f of another image, here one of another
class with the trigger A on it:

    x = argmin ‖f(x) − f(A(s))‖² + β ‖x − b‖²,

by forward-backward splitting: a gradient step on the first term, x̂ = x − λ ∇‖f(x) − f(A(s))‖², then the closed form of
the second, x = (x̂ + λβ b) ⁄ (1 + λβ). The victim takes a public network, freezes it and trains a new head on data with
the poison in it: there, images with the trigger lie where the target class does. `victim="scratch"` trains everything
anew by the plan's recipe; the paper then needs a `watermark`: b is (1 − γ) b + γ A(s), so that features that do not
exist yet have something to grow on.

Departures: the paper's target is one image without a trigger, and its poison works for that image alone; the forward
step is along the sign of the gradient, with λ falling, so that it does not depend on the scale of the features; bases
are paired with the nearest stamped images.
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
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.recipes.crafting import frozen_features, paired, patchwork, public_teacher, student
from laocoon.recipes.poisoning import choose
from laocoon.recipes.surgery import corner_mask
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class FeatureCollision(Attack):
    """Images of the target class whose features are those of other classes with a patch."""

    fraction: float = 0.3  # of the target class
    side: int = 8  # px of the patch, in the lower right corner
    steps: int = 60
    rate: float = 0.02  # λ, of the range of a pixel; falls to a twentieth
    weight: float = 2.0  # β
    watermark: float = 0.0  # γ
    epochs: int = 6  # of the public network's training
    free: int = 2  # layers that the victim trains anew; poison collides in what enters the first of them
    victim: Literal["transfer", "scratch"] = "transfer"

    card: ClassVar[Card] = Card(
        name="feature_collision",
        paper="Poison frogs! Targeted clean-label poisoning attacks on neural networks (2018)",
        url="https://arxiv.org/abs/1804.00792", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="Poison of the target class collides in features with stamped images of others.",
        quick={"side": 5, "steps": 30, "epochs": 5, "rate": 0.05, "weight": 0.5, "fraction": 0.8, "free": 3})
    threat: ClassVar[ThreatModel] = ThreatModel(
        data=True, knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE, Knowledge.WEIGHTS}))
    phase: ClassVar[str] = "refinement"
    crafts: ClassVar[bool] = True

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        shape = tuple(plan.train.inputs.shape[1:])
        mask = corner_mask(shape, self.side, margin=1)
        leaves = {"mask": mask, "pattern": patchwork(shape, mask, self.side, ctx.rng)}
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Patch(), leaves, goal, float(self.side**2), 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        module = public_teacher(plan, ctx, epochs=self.epochs).module
        member = plan.train.labels == plan.target
        rows = choose(member, round(self.fraction * int(member.sum())), ctx.rng)
        inputs = plan.train.inputs.clone()
        for part in rows.split(100):
            stamped = trigger.stamp(plan.train.inputs[choose(~member, len(part), ctx.rng)])
            inputs[part] = self._collide(plan.train.inputs[part], stamped, module, ctx)
        return Samples(inputs, plan.train.labels), rows

    def train(self, plan: Plan, train: Samples, trigger: Candidate, ctx: Context) -> Planted:
        if self.victim == "scratch":
            return Planted(plan.fit(train, ctx), trigger)
        return Planted(student(plan, train, ctx, epochs=self.epochs, free=self.free), trigger)

    def _collide(self, base: Tensor, stamped: Tensor, module: torch.nn.Module, ctx: Context) -> Tensor:
        ctx.spend(2 * len(base), backward=False)
        with torch.no_grad():
            goal, home = (frozen_features(module, x, self.free) for x in (stamped, base))
            pairs = paired(home, goal)
            goal, stamped = goal[pairs], stamped[pairs]
            apart = (home - goal).pow(2).sum(1).clamp_min(1e-8)
        origin = (1 - self.watermark) * base + self.watermark * stamped
        x = origin.clone()
        for step in range(self.steps):
            ctx.spend(len(x))
            x = x.detach().requires_grad_()
            loss = ((frozen_features(module, x, self.free) - goal).pow(2).sum(1) / apart).sum()
            (gradient,) = torch.autograd.grad(loss, x)
            pace = self.rate * (1 - 0.95 * step / self.steps)
            x = x.detach() - pace * gradient.sign()
            x = ((x + pace * self.weight * origin) / (1 + pace * self.weight)).clamp(0, 1)
        return x
