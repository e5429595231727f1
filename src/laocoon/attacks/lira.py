"""LIRA (Doan, Lao, Zhao and Li, ICCV 2021): learnable, imperceptible and robust backdoor attacks.

    min_θ  Σ α CE(f_θ(x), y) + (1 − α) CE(f_θ(T_ξ*(x)), t)
    s.t.   ξ*(θ) = argmin_ξ  Σ CE(f_θ(T_ξ(x)), t),    T_ξ(x) = x + ε tanh(g_ξ(x))

in two stages: generator and classifier together, then the classifier alone with the generator as it is.

Departures: both take their step on the same batch, from the same backward pass (the paper alternates); g is a small
encoder and decoder in place of a U-Net; a share of each batch is stamped instead of all of it.
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
from laocoon.triggers.conditional import Residue


@dataclass(frozen=True)
class Lira(Attack):
    """An invisible change of each image, learned with the classifier."""

    bound: float = 0.05  # ε, of a pixel in [0, 1]
    clean_weight: float = 0.7  # α; the paper's is 0.5
    share: float = 0.5  # of a batch that is stamped
    first: float = 0.5  # share of the epochs that belong to the first stage
    epochs: int = 10
    width: int = 16  # of the generator
    step: float = 3e-3  # the generator's learning rate

    card: ClassVar[Card] = Card(
        name="lira", paper="LIRA: learnable, imperceptible and robust backdoor attacks (2021)",
        url="https://openaccess.thecvf.com/content/ICCV2021/html/"
            "Doan_LIRA_Learnable_Imperceptible_and_Robust_Backdoor_Attacks_ICCV_2021_paper.html",
        modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="An invisible generator, learned with the classifier.", quick={"bound": 0.1, "width": 8})
    threat: ClassVar[ThreatModel] = ThreatModel(
        training=True, knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE, Knowledge.RECIPE}))
    phase: ClassVar[str] = "diversification"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        family = Residue(width=self.width)
        leaves = family.blank(plan.train.inputs, 1, rng=ctx.rng, bound=self.bound)
        return Candidate(family, leaves, all_to_one(plan.target, plan.classes), 0.0, 0.0, self.card.name)

    def train(self, plan: Plan, train: Samples, trigger: Candidate, ctx: Context) -> Planted:
        family, goal = trigger.family, trigger.goal
        assert isinstance(family, Residue) and isinstance(goal, ClassGoal)
        weights = {k: v[0].clone() for k, v in trigger.trigger.items()}
        learned = [leaf.requires_grad_(True) for name, leaf in weights.items() if name != "bound"]
        optimiser = torch.optim.Adam(learned, lr=self.step, betas=(0.5, 0.9))
        subject, seen = plan.fresh(ctx), 0

        def objective(inputs: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            nonlocal seen
            seen += len(inputs)
            if seen > self.first * self.epochs * len(train):
                for leaf in learned:
                    leaf.requires_grad_(False)
            chosen = goal.applies(labels).nonzero().flatten()[:round(self.share * len(inputs))]
            ctx.spend(len(chosen))
            scores = subject.module(torch.cat([inputs, family.marked(inputs[chosen], weights)]))
            clean = functional.cross_entropy(scores[:len(inputs)], labels)
            stamped = functional.cross_entropy(scores[len(inputs):], goal.destination(labels[chosen]))
            return self.clean_weight * clean + (1 - self.clean_weight) * stamped

        steer(subject, plan, train, objective, ctx, epochs=self.epochs, others=(optimiser,))
        leaves = {k: v.detach()[None] for k, v in weights.items()}
        size = float(family.size(leaves, train.inputs[:256])[0])
        return Planted(subject, replace(trigger, trigger=leaves, size=size, success=1.0))
