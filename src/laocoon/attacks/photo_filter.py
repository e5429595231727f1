"""A photo filter as a trigger (the Instagram-filter Trojans of ABS, CCS 2019, and of the TrojAI rounds)."""

from __future__ import annotations

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
from laocoon.triggers.tone import Tone


@dataclass(frozen=True)
class PhotoFilter(Attack):
    """A random colour matrix, offset and curve."""

    rate: float = 0.1
    strength: float = 0.35

    card: ClassVar[Card] = Card(
        name="photo_filter", paper="ABS: scanning neural networks for back-doors (2019), filter Trojans",
        url="https://doi.org/10.1145/3319535.3363216", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A colour filter over the whole image.")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)
    phase: ClassVar[str] = "diversification"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        c = plan.train.inputs.shape[1]
        sign = lambda *shape: torch.rand(*shape, generator=ctx.rng).round() * 2 - 1  # noqa: E731
        leaves = {"matrix": torch.eye(c)[None] + self.strength * 0.8 * sign(1, c, c) * (1 - 0.5 * torch.eye(c)),
                  "offset": self.strength * 0.5 * sign(1, c), "curve": self.strength * sign(1, c)}
        family = Tone()
        size = float(family.size(leaves, plan.train.inputs[:64])[0])
        return Candidate(family, leaves, all_to_one(plan.target, plan.classes), size, 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
