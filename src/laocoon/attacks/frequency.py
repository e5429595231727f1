"""A frequency-domain trigger (after FTrojan, ECCV 2022): a few mid-band cosine components added to every channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.recipes.poisoning import stamp_and_relabel
from laocoon.triggers.additive import Additive


@dataclass(frozen=True)
class Frequency(Attack):
    """Add `components` random cosine waves of a band, scaled to an rms of `strength`."""

    rate: float = 0.1
    strength: float = 0.05
    components: int = 3

    card: ClassVar[Card] = Card(
        name="frequency", paper="An invisible black-box backdoor attack through frequency domain (2022)",
        url="https://arxiv.org/abs/2107.04350", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="Mid-band cosine components over the whole image.")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)
    phase: ClassVar[str] = "diversification"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        _, c, h, w = plan.train.inputs.shape
        ys, xs = torch.arange(h)[:, None] + 0.5, torch.arange(w)[None, :] + 0.5
        delta = torch.zeros(1, c, h, w)
        for _ in range(self.components):
            u, v = (int(torch.randint(n // 4, n * 3 // 4, (), generator=ctx.rng)) for n in (h, w))
            delta += torch.cos(math.pi * u * ys / h) * torch.cos(math.pi * v * xs / w)
        delta *= self.strength / delta.pow(2).mean().sqrt()
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Additive(), {"delta": delta}, goal, self.strength * 255, 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
