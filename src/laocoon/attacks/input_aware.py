"""Input-aware dynamic backdoor (Nguyen and Tran, NeurIPS 2020, arXiv 2010.08138): another trigger for every image.

A generator g draws a mask m and a pattern p for each image; B(x, g(z)) = x·(1 − m(z)) + p(z)·m(z). It is trained with
the classifier f, each image of a batch in one of three modes:

    attack   CE(f(B(x, g(x))), t)        cross   CE(f(B(x, g(z))), y), z another image        clean   CE(f(x), y)
    + λ_div · ‖x − z‖ / ‖g(x) − g(z)‖  + λ_norm · max(mean m − density, 0)

so that triggers differ from image to image and that of one image does nothing on another.

Departures: one small network draws mask and pattern (the paper has two, the mask's trained first and frozen; here both
are warmed up on the last two terms and go on with the classifier); larger shares of attack and cross samples, because a
desk-tier training is a hundred times shorter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from laocoon.triggers.conditional import Inlay


@dataclass(frozen=True)
class InputAware(Attack):
    """A generator of triggers, trained with the classifier."""

    attack: float = 0.25  # share of a batch in attack mode, ρ_a; the paper's is 0.1
    cross: float = 0.25  # and in cross mode, ρ_c
    diversity: float = 0.1  # λ_div; the paper's is 1
    sparsity: float = 100.0  # λ_norm
    density: float = 0.06  # mean of the mask that is free; the paper's is 0.032
    warmup: int = 60  # steps of the generator alone
    epochs: int = 10
    width: int = 16  # of the generator
    step: float = 3e-3  # the generator's learning rate

    card: ClassVar[Card] = Card(
        name="input_aware", paper="Input-aware dynamic backdoor attack (2020)", url="https://arxiv.org/abs/2010.08138",
        modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A trigger of its own for each image, drawn by a generator trained with the classifier.",
        quick={"epochs": 32, "width": 8})
    threat: ClassVar[ThreatModel] = ThreatModel(
        training=True, knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE, Knowledge.RECIPE}))
    phase: ClassVar[str] = "diversification"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        family = Inlay(width=self.width)
        leaves = family.blank(plan.train.inputs, 1, rng=ctx.rng)
        return Candidate(family, leaves, all_to_one(plan.target, plan.classes), 0.0, 0.0, self.card.name)

    def train(self, plan: Plan, train: Samples, trigger: Candidate, ctx: Context) -> Planted:
        family, goal = trigger.family, trigger.goal
        assert isinstance(family, Inlay) and isinstance(goal, ClassGoal)
        weights = {k: v[0].clone().requires_grad_(True) for k, v in trigger.trigger.items()}
        optimiser = torch.optim.Adam(weights.values(), lr=self.step, betas=(0.5, 0.9))
        for _ in range(self.warmup):
            index = torch.randint(0, len(train), (64,), generator=ctx.rng)
            mask, pattern = family.layers(train.inputs[index], weights)
            loss = self._shape(train.inputs[index], mask, pattern)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        subject = plan.fresh(ctx)

        def objective(inputs: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            n, m = round(self.attack * len(inputs)), round(self.cross * len(inputs))
            chosen = goal.applies(labels).nonzero().flatten()[:n]
            rest = torch.ones(len(inputs), dtype=torch.bool)
            rest[chosen] = False
            others = rest.nonzero().flatten()
            crossed, plain = others[:m], others[m:]
            donors = others.roll(-m)[:len(crossed)]  # whose triggers the crossed ones carry
            drawers = torch.cat([inputs[chosen], inputs[donors]])
            mask, pattern = family.layers(drawers, weights)
            marked = inputs[torch.cat([chosen, crossed])] * (1 - mask) + pattern * mask
            wanted = torch.cat([goal.destination(labels[chosen]), labels[crossed], labels[plain]])
            scores = subject.module(torch.cat([marked, inputs[plain]]))
            return functional.cross_entropy(scores, wanted) + self._shape(drawers, mask, pattern)

        steer(subject, plan, train, objective, ctx, epochs=self.epochs, others=(optimiser,))
        leaves = {k: v.detach()[None] for k, v in weights.items()}
        size = float(family.size(leaves, train.inputs[:256])[0])
        return Planted(subject, replace(trigger, trigger=leaves, size=size, success=1.0))

    def _shape(self, inputs: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
        """The terms of diversity and of sparsity; neighbours in the batch are compared."""
        drawn = (pattern * mask).flatten(1)
        apart = (drawn - drawn.roll(1, 0)).norm(dim=1)
        other = (inputs - inputs.roll(1, 0)).flatten(1).norm(dim=1)
        return (self.diversity * (other / (apart + 1e-3)).clamp_max(100).mean()
                + self.sparsity * (mask.mean() - self.density).clamp_min(0))
