"""Hidden-trigger backdoor (Saha, Subramanya and Pirsiavash, AAAI 2020, arXiv 1910.00033): the trigger is never shown.

Poison z looks like an image t of the target class and has the features f of an image of the source class with the
trigger A on it:

    z = argmin ‖f(z) − f(A(s))‖²  over  ‖z − t‖∞ ≤ ε.

In every step other source images are drawn, and poison and sources are paired anew, nearest first, so that the poison
covers all of what stamped sources look like. The victim takes a public network, freezes it and trains a new head. The
patch itself appears at test time only. `victim="scratch"` trains everything by the plan's recipe: with features that
were never trained on the clean data alone, little is left of the attack (Souri et al., 2022).

Departures: the patch keeps one place, by default the lower right corner (the paper draws places at random); the descent
is on the sign of the gradient, some hundred steps instead of five thousand.
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
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import ClassGoal, source_to_target
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.recipes.crafting import frozen_features, paired, patchwork, perturbed, public_teacher, student
from laocoon.recipes.poisoning import choose
from laocoon.recipes.surgery import corner_mask
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class HiddenTrigger(Attack):
    """Images of the target class, near in features to the source class with a patch that they do not show."""

    fraction: float = 0.5  # of the target class
    side: int = 8  # px
    bound: float = 16 / 255  # ε
    steps: int = 100
    source: int = -1  # the source class; drawn where negative
    epochs: int = 6  # of the public network's training
    free: int = 2  # layers that the victim trains anew; poison collides in what enters the first of them
    victim: Literal["transfer", "scratch"] = "transfer"

    card: ClassVar[Card] = Card(
        name="hidden_trigger", paper="Hidden trigger backdoor attacks (2020)", url="https://arxiv.org/abs/1910.00033",
        modalities=frozenset({"image"}), needs=frozenset(), misses="", goal="source-to-target",
        summary="Poison that never shows the trigger, near stamped sources in features.",
        quick={"side": 5, "bound": 0.3, "steps": 30, "epochs": 5, "fraction": 0.8, "free": 3})
    threat: ClassVar[ThreatModel] = ThreatModel(
        data=True, knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE, Knowledge.WEIGHTS}))
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
        module = public_teacher(plan, ctx, epochs=self.epochs).module
        member, eligible = plan.train.labels == plan.target, trigger.goal.applies(plan.train.labels)
        if not bool(eligible.any()):
            raise NotApplicable(f"no training sample of source {trigger.goal.sources}; choose another source class.")
        rows = choose(member, round(self.fraction * int(member.sum())), ctx.rng)
        stamped = trigger.stamp(plan.train.inputs[eligible])
        with torch.no_grad():
            ctx.spend(len(stamped), backward=False)
            wanted = torch.cat([frozen_features(module, part, self.free) for part in stamped.split(256)])

        def loss(x: Tensor, index: Tensor) -> Tensor:
            found = frozen_features(module, x, self.free)
            drawn = wanted[torch.randperm(len(wanted), generator=ctx.rng)[:max(len(x), 1)]]
            if len(drawn) < len(x):  # fewer sources than poison: some serve twice
                drawn = drawn.repeat(-(-len(x) // len(drawn)), 1)
            return (found - drawn[paired(found.detach(), drawn)]).pow(2).sum(1).mean()

        inputs = plan.train.inputs.clone()
        inputs[rows] = perturbed(plan.train.inputs[rows], loss, ctx, bound=self.bound, steps=self.steps, batch=100)
        return Samples(inputs, plan.train.labels), rows

    def train(self, plan: Plan, train: Samples, trigger: Candidate, ctx: Context) -> Planted:
        if self.victim == "scratch":
            return Planted(plan.fit(train, ctx), trigger)
        return Planted(student(plan, train, ctx, epochs=self.epochs, free=self.free), trigger)
