"""BppAttack (Wang, Zhai and Ma, CVPR 2022): image quantisation as the trigger.

Departure: data poisoning with relabelled samples, without the paper's contrastive adversarial training and dithering.
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
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.recipes.poisoning import stamp_and_relabel
from laocoon.triggers.quantise import Quantise


@dataclass(frozen=True)
class Bpp(Attack):
    """Keep `levels` grey levels per channel."""

    rate: float = 0.1
    levels: int = 5

    card: ClassVar[Card] = Card(
        name="bpp", paper="BppAttack: stealthy and efficient Trojan attacks via image quantization (2022)",
        url="https://arxiv.org/abs/2205.13383", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="Colour-depth reduction of the whole image.")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)
    phase: ClassVar[str] = "diversification"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        family, leaves = Quantise(), {"levels": torch.tensor([float(self.levels)])}
        size = float(family.size(leaves, plan.train.inputs[:64])[0])
        return Candidate(family, leaves, all_to_one(plan.target, plan.classes), size, 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
