"""Multi-trigger, multi-target BadNets (Gu, Dolan-Gavitt and Garg, 2017, arXiv 1708.06733, with several backdoors):
one model, several patches, each of which sends every input to a class of its own.

    D' = ∪_k {(A_k(x), t_k) : x ∈ P_k},  P_k disjoint, |P_k| = rate · n / K

The candidate that comes back is the patch of the plan's target class; its leaves hold all patches and their targets,
and `triggers.patches.each` makes candidates of all. A judge who looks at the first alone sees one backdoor of K.
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
from laocoon.core.errors import InputError
from laocoon.core.goal import ClassGoal, all_to_one
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.recipes.poisoning import choose
from laocoon.triggers.patches import Patches, each


@dataclass(frozen=True)
class MultiTrigger(Attack):
    """Several random squares, each with its own target class."""

    rate: float = 0.15  # share of the training set that is poisoned, by all triggers together
    triggers: int = 3
    side: int = 4  # px

    card: ClassVar[Card] = Card(
        name="multi_trigger", paper="BadNets (2017)", url="https://arxiv.org/abs/1708.06733",
        modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="Several patches in one model, each with a target class of its own.", quick={"rate": 0.2},
        fails={"check_stamps_only_what_it_says":
               "a candidate has one goal, and two thirds of the poison carry the other triggers and their labels; "
               "tests/attacks/test_dynamic.py checks every trigger on its own share."})
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        if not 1 <= self.triggers <= plan.classes:
            raise InputError(f"{self.triggers} triggers cannot have a target each among {plan.classes} classes.",
                             f"Choose 1 to {plan.classes} triggers.")
        _, c, h, w = plan.train.inputs.shape
        others = [k for k in range(plan.classes) if k != plan.target]
        drawn = torch.randperm(len(others), generator=ctx.rng)[:self.triggers - 1].tolist()
        targets = [plan.target, *(others[i] for i in drawn)]
        mask = torch.zeros(1, self.triggers, 1, h, w)
        pattern = torch.rand(1, self.triggers, c, h, w, generator=ctx.rng).round()
        rows, columns = (range(1, extent - self.side, self.side + 1) for extent in (h, w))
        places = [(y, x) for y in rows for x in columns]
        if len(places) < self.triggers:
            raise InputError(f"{self.triggers} squares of {self.side} px do not fit side by side into {h} × {w}.",
                             "Choose fewer triggers or a smaller side.")
        for k, place in enumerate(torch.randperm(len(places), generator=ctx.rng)[:self.triggers].tolist()):
            y, x = places[place]
            mask[0, k, :, y:y + self.side, x:x + self.side] = 1
            pattern[0, k, :, y + self.side // 2, x + self.side // 2] = 1  # seen on a black background, too
        leaves = {"mask": mask, "pattern": pattern, "targets": torch.tensor([targets]), "chosen": torch.tensor([0])}
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Patches(self.triggers), leaves, goal, float(self.side**2), 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        train, total = plan.train, round(self.rate * len(plan.train))
        inputs, labels = train.inputs.clone(), train.labels.clone()
        free, changed = torch.ones(len(train), dtype=torch.bool), []
        for k, one in enumerate(each(trigger, plan.classes)):
            assert isinstance(one.goal, ClassGoal)
            count = total // self.triggers + (k < total % self.triggers)
            poison = choose(one.goal.applies(train.labels) & free, count, ctx.rng)
            free[poison] = False
            for part in poison.split(512):
                inputs[part] = one.stamp(inputs[part])
            labels[poison] = one.goal.destination(train.labels[poison])
            changed.append(poison)
        return Samples(inputs, labels), torch.cat(changed)
