"""Blended injection (Chen et al., 2017, arXiv 1712.05526): a whole-image pattern mixed in at low strength."""

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
from laocoon.core.goal import all_to_all, all_to_one
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.recipes.poisoning import stamp_and_relabel
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class Blended(Attack):
    """Mix a random pattern into the whole image: pixel noise or a smooth picture."""

    rate: float = 0.1
    strength: float = 0.2  # α of the paper
    pattern: Literal["noise", "smooth"] = "noise"
    mode: Literal["all-to-one", "all-to-all"] = "all-to-one"

    card: ClassVar[Card] = Card(
        name="blended", paper="Targeted backdoor attacks by data poisoning (2017)",
        url="https://arxiv.org/abs/1712.05526", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A whole-image pattern at low strength, relabelled samples.")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        _, c, h, w = plan.train.inputs.shape
        pattern = torch.rand(1, c, h, w, generator=ctx.rng)
        if self.pattern == "smooth":
            coarse = torch.rand(1, c, 5, 5, generator=ctx.rng).round()
            pattern = functional.interpolate(coarse, size=(h, w), mode="bicubic").clamp(0, 1)
        mask = torch.full((1, 1, h, w), self.strength)
        goal = (all_to_one(plan.target, plan.classes) if self.mode == "all-to-one" else all_to_all(plan.classes))
        return Candidate(Patch(), {"mask": mask, "pattern": pattern}, goal, float(mask.sum()), 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
