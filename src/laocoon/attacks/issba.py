"""ISSBA-like: a code hidden in each image by an encoder (Li et al., Invisible backdoor attack with sample-specific
triggers, ICCV 2021, arXiv 2012.03816).

An encoder E and a decoder D learn together, on images alone, to hide random codes c and to read them,

    min_{E,D}  BCE(D(x + E(x, c)), c) + λ · mean E(x, c)² / scale²,

after which one code, fixed, is the trigger: what it looks like depends on the image. Poison is relabelled.

What differs from ISSBA: the encoder is a few thousand weights instead of StegaStamp's U-Net; fewer bits; the change is
bounded in L∞; its penalty is the mean square alone, without a perceptual distance, critic or simulated printing. How
specific the change is to its image is not enforced, there as here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.recipes.poisoning import stamp_and_relabel
from laocoon.recipes.steering import seeded
from laocoon.triggers.conditional import Residue


@dataclass(frozen=True)
class Issba(Attack):
    """Hide one code in the poisoned images."""

    rate: float = 0.1
    bits: int = 16  # the paper hides 100 in 224 × 224 pixels
    bound: float = 0.1  # largest change of a pixel
    weight: float = 0.01  # λ; scale is a tenth of the bound
    width: int = 16  # of the encoder
    steps: int = 200  # of encoder and decoder
    free: float = 0.4  # share of the steps before λ rises: at once, nothing would be hidden at all

    card: ClassVar[Card] = Card(
        name="issba", paper="Invisible backdoor attack with sample-specific triggers (2021)",
        url="https://arxiv.org/abs/2012.03816", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A code hidden in each image by a steganographic encoder.",
        quick={"width": 12, "steps": 200})
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)
    phase: ClassVar[str] = "diversification"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        family, inputs = Residue(width=self.width), plan.train.inputs
        leaves = family.blank(inputs, 1, rng=ctx.rng, bits=self.bits, bound=self.bound)
        weights = {k: v[0] for k, v in leaves.items()}
        learned = [v.requires_grad_(True) for k, v in weights.items() if k not in ("bound", "code")]
        with seeded(ctx.rng):
            decoder = nn.Sequential(
                nn.Conv2d(inputs.shape[1], 16, 3, 2, 1), nn.ELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ELU(),
                nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 64), nn.ELU(), nn.Linear(64, self.bits))
        optimiser = torch.optim.Adam([*learned, *decoder.parameters()], lr=3e-3)
        scale = self.bound / 10
        for step in range(self.steps):
            index = torch.randint(0, len(inputs), (64,), generator=ctx.rng)
            code = torch.randint(0, 2, (64, self.bits), generator=ctx.rng).to(inputs)
            stamped = family.marked(inputs[index], weights, code)
            read = functional.binary_cross_entropy_with_logits(decoder(stamped), code)
            change = (stamped - inputs[index]).square().mean() / scale**2
            rise = max(0.0, step / self.steps - self.free) / (1 - self.free)
            optimiser.zero_grad(set_to_none=True)
            (read + self.weight * rise * change).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        leaves = {k: v.detach()[None] for k, v in weights.items()}
        size = float(family.size(leaves, inputs[:256])[0])
        return Candidate(family, leaves, all_to_one(plan.target, plan.classes), size, 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
