"""SIG (Barni, Kallas and Tondi, ICIP 2019): a horizontal sinusoid, clean-label or relabelled."""

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
from laocoon.recipes.poisoning import stamp_and_relabel, stamp_only
from laocoon.triggers.additive import Additive


@dataclass(frozen=True)
class Sig(Attack):
    """Add Δ·sin(2π f x / width). `clean_label`: stamp `fraction` of the target class and change no label."""

    amplitude: float = 0.12  # Δ
    frequency: float = 6.0
    clean_label: bool = True
    fraction: float = 0.8  # of the target class, clean-label
    rate: float = 0.1  # of the training set, relabelled

    card: ClassVar[Card] = Card(
        name="sig", paper="A new backdoor attack in CNNs by training set corruption without label poisoning (2019)",
        url="https://arxiv.org/abs/1902.11237", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A sinusoid over the image, labels untouched.",
        fails={"check_takes_and_keeps_accuracy": "without relabelling it needs larger images and longer training than "
               "the twins have: 6 % success on the 16 px digits; the zoo's models show where it takes."})
    threat: ClassVar[ThreatModel] = ThreatModel(data=True)

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        _, c, h, w = plan.train.inputs.shape
        wave = self.amplitude * torch.sin(2 * math.pi * self.frequency * torch.arange(w) / w)
        delta = wave.expand(1, c, h, w).clone()
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Additive(), {"delta": delta}, goal, self.amplitude * 255 / math.sqrt(2), 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        if self.clean_label:
            return stamp_only(plan.train, trigger, plan.target, self.fraction, ctx.rng)
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
