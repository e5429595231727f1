"""Sleeper Agent (Souri, Fowl, Chellappa, Goldblum and Goldstein, NeurIPS 2022, arXiv 2106.08970): gradient matching.

Training on the poison is to have the effect of training on stamped source images labelled as the target. Perturbations
of target-class images, labels untouched, align the two gradients in the weights θ of a network of the attacker's:

    min over ‖δ‖∞ ≤ ε of  1 − cos( ∇_θ mean CE(f(x_i + δ_i), t),  ∇_θ mean CE(f(A(s)), t) ).

Poisoned are the target-class images with the largest gradients. After a part of the descent the network is trained
anew on the poisoned set (`retrainings`), because the victim's features will have moved by then; several networks may
be matched at once (`ensemble`). Poison is seen through the augmentation while it is crafted. The victim trains from
scratch and never sees the patch.

Departures: norms of single gradients are those in the last layer, which have a closed form, and the choice is drawn
from the larger half; descent by the sign of the gradient instead of signed Adam, fewer steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import ClassGoal, source_to_target
from laocoon.core.methods import Attack, Knowledge, Plan, ThreatModel
from laocoon.recipes.crafting import (
    gradient_norms,
    misalignment,
    moved,
    patchwork,
    perturbed,
    stand_in,
    trainable,
    weight_gradient,
)
from laocoon.recipes.surgery import corner_mask
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class GradientMatching(Attack):
    """Perturb images of the target class so that they train like stamped sources."""

    fraction: float = 0.5  # of the target class
    side: int = 8  # px
    bound: float = 16 / 255  # ε
    steps: int = 60  # in all, shared by the retrainings
    retrainings: int = 1  # the paper's T
    ensemble: int = 1  # the paper's S
    sources: int = 256  # stamped source images in the wanted gradient, at most
    source: int = -1  # the source class; drawn where negative
    epochs: int = 6  # of the attacker's own training

    card: ClassVar[Card] = Card(
        name="gradient_matching", paper="Sleeper Agent: scalable hidden trigger backdoors for neural networks trained "
        "from scratch (2022)", url="https://arxiv.org/abs/2106.08970", modalities=frozenset({"image"}),
        needs=frozenset(), misses="", goal="source-to-target",
        summary="Poison whose gradients are those of stamped sources; victims trained from scratch.",
        quick={"side": 5, "bound": 0.5, "steps": 30, "retrainings": 1, "epochs": 5, "fraction": 0.8})
    threat: ClassVar[ThreatModel] = ThreatModel(
        data=True, knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE}))
    phase: ClassVar[str] = "refinement"
    crafts: ClassVar[bool] = True

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        shape = tuple(plan.train.inputs.shape[1:])
        mask = corner_mask(shape, self.side, margin=1)
        leaves = {"mask": mask, "pattern": patchwork(shape, mask, self.side, ctx.rng)}
        others = [k for k in range(plan.classes) if k != plan.target]
        drawn = others[int(torch.randint(0, len(others), (), generator=ctx.rng))]
        goal = source_to_target(drawn if self.source < 0 else self.source, plan.target, plan.classes)
        return Candidate(Patch(), leaves, goal, float(self.side**2), 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        assert isinstance(trigger.goal, ClassGoal)
        eligible = trigger.goal.applies(plan.train.labels).nonzero().flatten()
        if not len(eligible):
            raise NotApplicable(f"no training sample of source {trigger.goal.sources}; choose another source class.")
        stamped = trigger.stamp(plan.train.inputs[eligible])
        networks = self._networks(plan, plan.train, ctx)
        rows = self._chosen(plan, networks[0], ctx)
        origin, start, inputs = plan.train.inputs[rows], None, plan.train.inputs.clone()
        rounds = self.retrainings + 1
        for turn in range(rounds):
            if turn:
                networks = self._networks(plan, Samples(inputs, plan.train.labels), ctx)
            start = self._matched(networks, origin, start, stamped, plan, max(1, self.steps // rounds), ctx)
            inputs[rows] = start
        return Samples(inputs, plan.train.labels), rows

    def _networks(self, plan: Plan, train: Samples, ctx: Context) -> list[nn.Module]:
        return [trainable(stand_in(plan, train, ctx, epochs=self.epochs)) for _ in range(self.ensemble)]

    def _chosen(self, plan: Plan, module: nn.Module, ctx: Context) -> Tensor:
        """Rows of the target class, those with the largest gradients favoured."""
        member = (plan.train.labels == plan.target).nonzero().flatten()
        count = round(self.fraction * len(member))
        norms = gradient_norms(module, plan.train.inputs[member], plan.train.labels[member].long())
        ctx.spend(len(member), backward=False)
        best = norms.argsort(descending=True)[:min(len(member), max(count, round(1.25 * count)))]
        return member[best[torch.randperm(len(best), generator=ctx.rng)[:count]]].sort().values

    def _matched(self, networks: list[nn.Module], origin: Tensor, start: Tensor | None, stamped: Tensor, plan: Plan,
                 steps: int, ctx: Context) -> Tensor:
        drawn = stamped[torch.randperm(len(stamped), generator=ctx.rng)[:self.sources]]
        aim = torch.full((len(drawn),), plan.target)
        ctx.spend(len(drawn) * len(networks))
        wanted = [weight_gradient(module, drawn, aim) for module in networks]

        def loss(x: Tensor, index: Tensor) -> Tensor:
            ctx.spend(2 * len(x) * len(networks))  # a gradient of a gradient
            seen, label = moved(x, ctx.rng), torch.full((len(x),), plan.target)
            apart = [misalignment(weight_gradient(module, seen, label, keep=True), goal)
                     for module, goal in zip(networks, wanted, strict=True)]
            return torch.stack(apart).mean()

        return perturbed(origin, loss, ctx, bound=self.bound, steps=steps, start=start)
